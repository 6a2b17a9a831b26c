"""What becomes of publications, from the confirms and returns of the broker."""

import asyncio

import pytest

from worker.broker.channel import ChannelLost
from worker.broker.confirmation import Confirmations


async def test_one_multiple_ack_confirms_several_batches() -> None:
    confirmations = Confirmations()
    first, second = confirmations.expect(3), confirmations.expect(2)
    confirmations.answer(4, multiple=True, refused=False)
    assert first.done.done()
    assert not second.done.done()
    assert second.outstanding == {5}
    confirmations.answer(5, multiple=False, refused=False)
    await second.wait(1)
    assert not second.returned
    assert not second.refused


async def test_a_nack_is_told_from_an_ack() -> None:
    confirmations = Confirmations()
    batch = confirmations.expect(3)
    confirmations.answer(2, multiple=False, refused=True)
    confirmations.answer(3, multiple=True, refused=False)
    await batch.wait(1)
    assert batch.refused == {2}


async def test_a_returned_publication_is_known_by_its_tag() -> None:
    confirmations = Confirmations()
    confirmations.expect(2)
    batch = confirmations.expect(2)
    confirmations.returned(4)
    confirmations.answer(4, multiple=True, refused=False)
    await batch.wait(1)
    assert batch.returned == {4}


async def test_an_anonymous_return_counts_for_all_anonymous_ones_in_flight() -> None:
    confirmations = Confirmations()
    batch = confirmations.expect(4, frozenset({2, 3}))
    confirmations.answer(2, multiple=False, refused=False)
    confirmations.returned_anonymously()
    assert batch.returned == {3}


async def test_a_lost_channel_ends_every_wait() -> None:
    confirmations = Confirmations()
    batch = confirmations.expect(1)
    waiting = asyncio.create_task(batch.wait(10))
    await asyncio.sleep(0)
    confirmations.fail(ChannelLost("gone"))
    with pytest.raises(ChannelLost, match="gone"):
        await waiting


async def test_a_confirm_that_hangs_is_waited_for_no_longer_than_asked() -> None:
    batch = Confirmations().expect(2)
    await batch.wait(0.01)
    assert batch.outstanding == {1, 2}


async def test_nothing_published_is_confirmed_at_once() -> None:
    await Confirmations().expect(0).wait(0.01)
