"""Waiting items are served in turns."""

import asyncio

from worker.tasks.turns import Turns


async def test_turns_come_one_at_a_time_and_in_order() -> None:
    turns = Turns()
    second, third, first = turns.wait(), turns.wait(), turns.wait(first=True)
    for number, turn in enumerate((first, second, third), start=1):
        turns.next()
        assert turn.done()
        assert sum(each.done() for each in (first, second, third)) == number
    turns.next()


async def test_a_turn_comes_though_the_one_before_it_never_ends() -> None:
    turns = Turns(longest=0.01)
    abandoned, waiting = turns.wait(), turns.wait()
    async with asyncio.timeout(60):
        await waiting
    assert abandoned.done()
    later = turns.wait()
    turns.next()
    assert later.done()
