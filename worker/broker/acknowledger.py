"""The last stage: acknowledges deliveries that are settled, in as few frames as can be. It decides
nothing else.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from aiormq.abc import AbstractChannel

from worker.broker.connection import ChannelLost

# An ack is not on the way of any request, but costs a quorum queue as much as a message: an entry
# in its log, flushed to disk. So those of this many seconds go together.
TOGETHER_SECONDS = 0.01
# And with a small prefetch those of fewer: as many as fill it at this rate, a tenth of which a
# worker serves. So what waits for its ack is at most a tenth of the prefetch, and holds up no
# delivery.
PREFETCH_RATE = 100_000
# The last ones, when all is ended half way, may take so many seconds to write.
LAST_SECONDS = 1.0


class Acknowledger:
    """Acknowledges the deliveries of one channel.

    Batches mostly settle in the order in which they came, and then one frame acknowledges all of
    them. One that hangs (its reply isn't confirmed) does not hold up the others: they are
    acknowledged singly.

    Args:
        channel: on which they came.
        prefetch: tells how many deliveries may be unacknowledged.

    Attributes:
        writing: nothing is written while someone else holds it.
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
        """Have deliveries acknowledged, or rejected, each only once; waits for nothing."""
        (self._rejected if rejected else self._new).update(tags)
        self._wanted.set()

    def written_since(self, first: int) -> int:
        """How many deliveries from this tag on are acknowledged, as far as the broker was told."""
        return max(0, self._acknowledged_up_to - first + 1) + sum(tag >= first for tag in self._ahead)

    def close(self) -> None:
        """Say that nothing more comes: :meth:`run` then ends with the last acknowledgement."""
        self._closed = True
        self._wanted.set()

    async def run(self) -> None:
        """Acknowledge what is given, and what is given meanwhile, together; until :meth:`close`.

        Raises:
            ChannelLost: the channel ended; what was not acknowledged will be delivered again.
        """
        try:
            while not self._closed or self._new or self._rejected:
                await self._wanted.wait()
                async with self.writing:
                    await self._acknowledge_new()
                await asyncio.sleep(min(TOGETHER_SECONDS, self._prefetch() / PREFETCH_RATE))
        finally:
            if self._new:  # all of it is being ended: these need not come again
                with suppress(ChannelLost, TimeoutError):
                    async with asyncio.timeout(LAST_SECONDS):
                        await self._acknowledge_new()

    async def _acknowledge_new(self) -> None:
        """Say of the new tags what one ``multiple`` ack can say, and acknowledge the others singly.

        The broker refuses a ``multiple`` whose own tag is not outstanding: so it is a new one.
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
