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
    assert await mailbox.take(10, max_size=10) == [4, 4]
    assert await mailbox.take(10, max_size=10) == [4]
    assert await mailbox.take(10, max_size=10) == [20]
    assert len(mailbox) == 1
    assert await mailbox.take(10) == [1]


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
