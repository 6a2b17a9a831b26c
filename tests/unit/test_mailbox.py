"""The hand-over between two stages."""

import asyncio

from worker.tasks.mailbox import Mailbox


async def test_what_waits_comes_in_one_batch_up_to_the_limit() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for item in range(5):
        mailbox.put(item)
    assert await mailbox.take(3) == [0, 1, 2]
    assert await mailbox.take(3) == [3, 4]


async def test_one_item_is_handed_over_without_waiting_for_more() -> None:
    mailbox: Mailbox[int] = Mailbox()
    taking = asyncio.create_task(mailbox.take(100))
    await asyncio.sleep(0)
    mailbox.put(1)
    assert await taking == [1]


async def test_a_batch_ends_before_its_size_is_too_large() -> None:
    mailbox: Mailbox[int] = Mailbox(lambda item: item)
    for item in (4, 4, 4, 20, 1):
        mailbox.put(item)
    assert mailbox.size == 33
    assert await mailbox.take(10, max_size=10) == [4, 4]
    assert await mailbox.take(10, max_size=10) == [4]
    assert await mailbox.take(10, max_size=10) == [20]
    assert mailbox.size == 1
    assert await mailbox.take(10) == [1]


async def test_room_is_waited_for_until_what_is_inside_fits() -> None:
    mailbox: Mailbox[int] = Mailbox(lambda item: item)
    await mailbox.room(0)
    for item in (6, 5, 4):
        mailbox.put(item)
    waiting = asyncio.create_task(mailbox.room(8))
    await mailbox.take(1)
    await asyncio.sleep(0)
    assert not waiting.done()
    await mailbox.take(1)
    await waiting
    assert mailbox.size == 4


async def test_a_closed_mailbox_gives_what_it_has_and_then_nothing() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    mailbox.close()
    assert await mailbox.take(10) == [1]
    assert await mailbox.take(10) == []


async def test_closing_wakes_the_one_that_waits() -> None:
    mailbox: Mailbox[int] = Mailbox()
    taking = asyncio.create_task(mailbox.take(10))
    await asyncio.sleep(0)
    mailbox.close()
    assert await taking == []


async def test_room_is_looked_at_anew_with_what_is_beside() -> None:
    """The outside load may exceed the mailbox's size, and shrink again."""
    mailbox: Mailbox[int] = Mailbox(lambda item: item)
    beside = 100
    waiting = asyncio.create_task(mailbox.room(10, lambda: beside))
    await asyncio.sleep(0)
    assert not waiting.done()
    beside = 0
    mailbox.put(100)
    await mailbox.take(1)
    async with asyncio.timeout(5):
        await waiting
