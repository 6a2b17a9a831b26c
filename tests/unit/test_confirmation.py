"""The outcomes of publications that were sent together, from the broker's confirms and returns."""

import asyncio
from types import SimpleNamespace

import pytest

from worker.broker.connection import ChannelLost
from worker.broker.publication import Publication
from worker.broker.publisher import Confirmation, Fate

CONFIRMED, RETURNED, REFUSED, GIVEN_UP = Fate.CONFIRMED, Fate.RETURNED, Fate.REFUSED, Fate.GIVEN_UP


def confirmation_of(*queues: str, publisher: SimpleNamespace | None = None, first: int = 0) -> Confirmation:
    publications = [Publication(queue, b"\0\0", b"") for queue in queues]
    return Confirmation(publications, publisher or SimpleNamespace(latest=-1), first)  # type: ignore[arg-type]


async def test_all_confirmed_is_flawless_and_done() -> None:
    batch = confirmation_of("a", "b")
    batch.answer(1, CONFIRMED)
    assert not batch.flawless
    assert not batch.done.done()
    batch.answer(0, CONFIRMED)
    await batch.wait(60)
    assert batch.flawless
    assert batch.fates == [CONFIRMED, CONFIRMED]


async def test_a_nack_is_told_from_an_ack() -> None:
    batch = confirmation_of("a", "b", "c")
    for index, fate in enumerate((CONFIRMED, REFUSED, CONFIRMED)):
        batch.answer(index, fate)
    await batch.wait(60)
    assert batch.fates == [CONFIRMED, REFUSED, CONFIRMED]
    assert not batch.flawless


async def test_the_brokers_first_word_counts() -> None:
    """A returned message is also confirmed, after its return."""
    batch = confirmation_of("gone")
    batch.return_to("gone")
    batch.answer(0, CONFIRMED)
    assert batch.fates == [RETURNED]
    assert not batch.flawless
    assert batch.done.done()


async def test_a_return_counts_for_all_to_that_queue_of_which_nothing_was_said() -> None:
    batch = confirmation_of("gone", "there", "gone", "gone")
    batch.answer(0, CONFIRMED)
    batch.return_to("gone")
    batch.return_to("elsewhere")
    assert batch.fates == [CONFIRMED, None, RETURNED, RETURNED]
    batch.return_to("gone")
    batch.answer(1, CONFIRMED)
    assert batch.fates == [CONFIRMED, CONFIRMED, RETURNED, RETURNED]
    assert batch.done.done()


async def test_one_that_is_given_up_is_waited_for_no_more() -> None:
    batch = confirmation_of("a", "b")
    batch.answer(0, REFUSED)
    batch.give_up(0)
    batch.give_up(1)
    assert batch.fates == [GIVEN_UP, GIVEN_UP]
    assert not batch.flawless
    await batch.wait(60)
    batch.answer(1, CONFIRMED)
    assert batch.fates[1] is GIVEN_UP


async def test_one_is_overtaken_once_a_later_one_is_answered_for_whichever_batch_that_is_in() -> None:
    publisher = SimpleNamespace(latest=-1)
    first = confirmation_of("a", "b", publisher=publisher, first=0)
    second = confirmation_of("c", publisher=publisher, first=2)
    assert not first.overtaken(0)
    first.answer(0, CONFIRMED)
    assert not first.overtaken(0)
    assert not first.overtaken(1)
    second.answer(0, CONFIRMED)
    assert first.overtaken(1)
    assert not second.overtaken(0)


async def test_one_that_is_given_up_overtakes_none_before_it() -> None:
    batch = confirmation_of("a", "b", publisher=SimpleNamespace(latest=-1), first=0)
    batch.give_up(1)
    assert not batch.overtaken(0)


async def test_a_confirm_that_hangs_is_waited_for_no_longer_than_asked() -> None:
    batch = confirmation_of("a", "b")
    await batch.wait(0.01)
    assert batch.fates == [None, None]


async def test_a_lost_channel_ends_every_wait() -> None:
    batch = confirmation_of("a")
    waiting = asyncio.create_task(batch.wait(60))
    await asyncio.sleep(0)
    batch.done.set_exception(ChannelLost("gone"))
    with pytest.raises(ChannelLost, match="gone"):
        await waiting
    batch.answer(0, CONFIRMED)  # too late to matter, and harmless


async def test_nothing_published_is_confirmed_at_once() -> None:
    batch = confirmation_of()
    await batch.wait(0.01)
    assert batch.flawless


async def test_without_confirms_all_is_assumed_to_have_arrived() -> None:
    batch = confirmation_of("a", "b")
    batch.assume_all()
    assert batch.flawless
    await batch.wait(60)
