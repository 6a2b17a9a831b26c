"""Publications that go out together: when the wait for their confirms ends."""

import asyncio

import pytest

from worker.amqp.publication import Confirm, Publication
from worker.broker.connection import ChannelLost
from worker.broker.publisher import Confirmation


def confirmation_of(count: int) -> tuple[Confirmation, "asyncio.Future[ChannelLost]"]:
    ended: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
    return Confirmation([Publication("a", b"\0\0", b"")] * count, ended), ended


async def test_all_that_are_acknowledged_are_taken() -> None:
    confirmation, _ = confirmation_of(2)
    confirmation.confirm(1, Confirm.ACK)
    assert not confirmation.all_taken
    confirmation.confirm(0, Confirm.ACK)
    await confirmation.wait(60)
    assert confirmation.all_taken


@pytest.mark.parametrize("confirm", [Confirm.NACK, Confirm.RETURN])
async def test_one_that_is_not_taken_is_told_from_the_others(confirm: Confirm) -> None:
    confirmation, _ = confirmation_of(3)
    for index, each in enumerate((Confirm.ACK, confirm, Confirm.ACK)):
        confirmation.confirm(index, each)
    await confirmation.wait()
    assert confirmation.confirms == [Confirm.ACK, confirm, Confirm.ACK]
    assert not confirmation.all_taken


async def test_a_confirm_that_hangs_is_waited_for_no_longer_than_asked() -> None:
    confirmation, _ = confirmation_of(2)
    await confirmation.wait(0.01)
    assert confirmation.confirms == [None, None]


async def test_a_lost_channel_ends_the_wait_unless_all_is_answered() -> None:
    open_, ended = confirmation_of(1)
    answered, ended_too = confirmation_of(1)
    waiting = asyncio.create_task(open_.wait())
    await asyncio.sleep(0)
    ended.set_result(ChannelLost("gone"))
    with pytest.raises(ChannelLost, match="gone"):
        await waiting
    answered.confirm(0, Confirm.ACK)
    ended_too.set_result(ChannelLost("gone"))
    await answered.wait()


async def test_nothing_published_is_taken_at_once() -> None:
    confirmation, _ = confirmation_of(0)
    await confirmation.wait()
    assert confirmation.all_taken
