"""The acks that the broker gets for settled deliveries, whatever their order."""

import asyncio
import random
from collections.abc import Sequence

import pytest

from worker.broker.acknowledger import Acknowledger
from worker.broker.connection import ChannelLost

Frame = tuple[int, bool]


class Recorder:
    """Records the acks that a channel would send.

    Args:
        deliveries: how many the channel has delivered. It checks the broker's rule: the tag of a
            ``multiple`` must be outstanding, and all outstanding tags up to it are acknowledged.
        lost: each ack raises this error.
    """

    def __init__(self, deliveries: int = 0, lost: Exception | None = None) -> None:
        self.frames: list[Frame] = []
        self.rejected: list[int] = []
        self.outstanding = set(range(1, deliveries + 1))
        self._lost = lost

    async def basic_ack(self, delivery_tag: int, multiple: bool = False, wait: bool = True) -> None:
        assert not wait
        if self._lost is not None:
            raise self._lost
        assert delivery_tag in self.outstanding
        self.frames.append((delivery_tag, multiple))
        up_to = {tag for tag in self.outstanding if tag < delivery_tag} if multiple else set()
        self.outstanding -= up_to | {delivery_tag}

    async def basic_reject(self, delivery_tag: int, *, requeue: bool = True, wait: bool = True) -> None:
        assert not requeue
        assert not wait
        assert delivery_tag in self.outstanding
        self.rejected.append(delivery_tag)
        self.outstanding.remove(delivery_tag)


async def frames_for(batches: Sequence[Sequence[int]]) -> list[list[Frame]]:
    """The frames of each batch, when it is acknowledged before the next one is settled."""
    channel = Recorder(max((tag for batch in batches for tag in batch), default=0))
    acks = Acknowledger(channel, lambda: 1)
    running = asyncio.create_task(acks.run())
    seen: list[list[Frame]] = []
    for batch in batches:
        before, left = len(channel.frames), channel.outstanding - set(batch)
        acks.acknowledge(batch)
        async with asyncio.timeout(60):
            while channel.outstanding - left:
                await asyncio.sleep(0)
        assert channel.outstanding == left
        seen.append(channel.frames[before:])
    acks.close()
    await running
    return seen


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([[1, 2, 3]], [[(3, True)]]),
        ([[1, 2], [3, 4]], [[(2, True)], [(4, True)]]),
        ([[2, 3], [1]], [[(2, False), (3, False)], [(1, True)]]),
        ([[3], [1, 2], [4]], [[(3, False)], [(2, True)], [(4, True)]]),
        ([[1, 4], [2, 3]], [[(4, False), (1, True)], [(3, True)]]),
        ([[]], [[]]),
    ],
)
async def test_batches_in_order_take_one_frame_and_others_are_acknowledged_singly(
    batches: list[list[int]], expected: list[list[Frame]]
) -> None:
    assert await frames_for(batches) == expected


@pytest.mark.parametrize("seed", range(50))
async def test_every_tag_is_acknowledged_exactly_when_it_is_settled(seed: int) -> None:
    """:func:`frames_for` fails on any other frame, even one that the broker would accept."""
    shuffled = random.Random(seed)
    tags = list(range(1, 200))
    shuffled.shuffle(tags)
    batches = []
    while tags:
        size = shuffled.randint(1, 30)
        batches.append(tags[:size])
        tags = tags[size:]
    await frames_for(batches)


async def test_what_is_settled_together_or_within_a_moment_goes_out_in_one_frame() -> None:
    channel = Recorder(200)
    acks = Acknowledger(channel, lambda: 65_535)
    running = asyncio.create_task(acks.run())
    for tag in range(1, 201):
        acks.acknowledge([tag])
    acks.close()
    await running
    assert channel.frames == [(200, True)]


async def test_those_given_before_the_close_are_acknowledged_all_the_same() -> None:
    channel = Recorder(5)
    acks = Acknowledger(channel, lambda: 1)
    acks.acknowledge([1, 2])
    acks.acknowledge([5])
    acks.close()
    await acks.run()
    assert channel.frames == [(5, False), (2, True)]


async def test_rejected_ones_are_rejected_singly_and_hold_up_no_other() -> None:
    """Rejected ones count as settled: a later frame acknowledges all up to the last."""
    channel = Recorder(5)
    acks = Acknowledger(channel, lambda: 1)
    acks.acknowledge([2], rejected=True)
    acks.acknowledge([1, 3])
    running = asyncio.create_task(acks.run())
    while channel.outstanding != {4, 5}:
        await asyncio.sleep(0)
    acks.acknowledge([4], rejected=True)
    acks.acknowledge([5])
    acks.close()
    await running
    assert channel.rejected == [2, 4]
    assert channel.frames == [(3, True), (5, True)]


async def test_being_cancelled_acknowledges_what_was_settled() -> None:
    """It is cancelled between two frames when the line ends; these need not be redelivered."""
    channel = Recorder(3)
    acks = Acknowledger(channel, lambda: 65_535)
    running = asyncio.create_task(acks.run())
    acks.acknowledge([1])
    while not channel.frames:
        await asyncio.sleep(0)
    acks.acknowledge([2, 3])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert channel.frames == [(1, True), (3, True)]


async def test_a_channel_that_hangs_at_the_end_is_not_waited_for() -> None:
    class Hanging(Recorder):
        async def basic_ack(self, delivery_tag: int, multiple: bool = False, wait: bool = True) -> None:
            await asyncio.Event().wait()

    acks = Acknowledger(Hanging(1), lambda: 1)
    acks.acknowledge([1])
    running = asyncio.create_task(acks.run())
    await asyncio.sleep(0)
    acks.acknowledge([2])
    running.cancel()
    async with asyncio.timeout(60):
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_a_channel_that_is_gone_is_a_lost_channel() -> None:
    acks = Acknowledger(Recorder(1, RuntimeError("closed")), lambda: 1)
    acks.acknowledge([1])
    with pytest.raises(ChannelLost, match="closed"):
        await acks.run()
