"""A bound in bytes."""

import asyncio

from worker.tasks.budget import Budget


def test_what_fits_is_held_and_what_does_not_is_not() -> None:
    budget = Budget(100)
    assert budget.take(60)
    assert not budget.take(41)
    assert budget.take(40)
    assert budget.held == 100


def test_what_is_larger_than_all_is_held_alone() -> None:
    budget = Budget(100)
    assert budget.take(1000)
    assert not budget.take(1)
    budget.change(-1000)
    assert budget.take(1)
    assert not budget.take(1000)


async def test_each_waits_until_there_is_room_for_it() -> None:
    budget = Budget(100)
    budget.change(150)
    large, small = (asyncio.create_task(budget.room(size)) for size in (90, 10))
    await asyncio.sleep(0)
    assert [large.done(), small.done()] == [False, False]
    budget.change(-70)
    await small
    await asyncio.sleep(0)
    assert not large.done()
    budget.change(-80)
    await large
