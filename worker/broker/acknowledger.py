"""The last stage: acknowledges settled deliveries, in as few frames as possible. It decides nothing
else.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from aiormq.abc import AbstractChannel

from worker.broker.connection import ChannelLost

# Acks are collected for this many seconds. No request waits for an ack, but it costs a quorum queue
# as much as a message: an entry in its log, flushed to disk.
TOGETHER_SECONDS = 0.01
# With a small prefetch, acks are collected for a shorter time: prefetch / this rate, in seconds. A
# worker serves a tenth of this rate. So at most a tenth of the prefetch waits for its ack, and no
# delivery is held up.
PREFETCH_RATE = 100_000
# Seconds to write the remaining acks after cancellation.
LAST_SECONDS = 1.0


class Acknowledger:
    """Acknowledges the deliveries of one channel.

    Batches mostly settle in the order of their delivery, and one frame acknowledges them all. A
    delivery that hangs (its reply isn't confirmed) does not hold up the others: they are
    acknowledged singly.

    Args:
        channel: of the deliveries.
        prefetch: returns the maximum of unacknowledged deliveries.

    Attributes:
        writing: held while acks are written. Hold it to keep them from being written.
    """

    def __init__(self, channel: AbstractChannel, prefetch: Callable[[], int]) -> None:
        self.writing = asyncio.Lock()
        self._channel = channel
        self._prefetch = prefetch
        self._new: set[int] = set()
        self._rejected: set[int] = set()
        self._acknowledged_up_to = 0
        self._ahead: set[int] = set()
        self._wanted = asyncio.Event()
        self._closed = False

    def acknowledge(self, tags: Iterable[int], *, rejected: bool = False) -> None:
        """Schedule deliveries to be acknowledged or rejected. Give each tag only once."""
        (self._rejected if rejected else self._new).update(tags)
        self._wanted.set()

    def written_since(self, first: int) -> int:
        """The number of acks written for deliveries from this tag on."""
        return max(0, self._acknowledged_up_to - first + 1) + sum(tag >= first for tag in self._ahead)

    def close(self) -> None:
        """Make :meth:`run` end after the last acknowledgement. Nothing may be scheduled later."""
        self._closed = True
        self._wanted.set()

    async def run(self) -> None:
        """Write the scheduled acknowledgements, until :meth:`close`.

        Raises:
            ChannelLost: the channel ended. Unacknowledged deliveries will come again.
        """
        try:
            while not self._closed or self._new or self._rejected:
                await self._wanted.wait()
                async with self.writing:
                    await self._acknowledge_new()
                await asyncio.sleep(min(TOGETHER_SECONDS, self._prefetch() / PREFETCH_RATE))
        finally:
            if self._new:  # the task was cancelled: keep these from being delivered again
                with suppress(ChannelLost, TimeoutError):
                    async with asyncio.timeout(LAST_SECONDS):
                        await self._acknowledge_new()

    async def _acknowledge_new(self) -> None:
        """Write one ``multiple`` ack for all new tags up to a gap, and a single ack for each other.

        The ``multiple`` ack carries a new tag: the broker refuses one that is not outstanding.
        """
        self._wanted.clear()
        rejected, self._rejected = self._rejected, set()
        try:
            for tag in rejected:
                await self._channel.basic_reject(tag, requeue=False, wait=False)
            new, self._new = self._new, set()
            ahead, up_to = self._ahead, self._acknowledged_up_to
            ahead.update(new, rejected)
            while up_to + 1 in ahead:
                up_to += 1
            ahead.difference_update(range(self._acknowledged_up_to + 1, up_to + 1))
            self._acknowledged_up_to = up_to
            for tag in sorted(new & ahead):
                await self._channel.basic_ack(tag, wait=False)
            if together := new - ahead:
                await self._channel.basic_ack(max(together), multiple=True, wait=False)
        except Exception as error:
            raise ChannelLost(str(error)) from error
