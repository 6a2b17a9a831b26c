"""The last stage: acknowledges deliveries that are settled, in as few frames as can be. It decides
nothing else.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

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


class AckChannel(Protocol):
    """What of aiormq's channel is needed here."""

    def basic_ack(self, delivery_tag: int, multiple: bool = False, wait: bool = True) -> Awaitable[None]:
        """Write a ``basic.ack``."""

    def basic_reject(self, delivery_tag: int, *, requeue: bool = True, wait: bool = True) -> Awaitable[None]:
        """Write a ``basic.reject``."""


class Acknowledger:
    """Acknowledges the deliveries of one channel.

    Batches mostly settle in the order in which they came, and then one frame acknowledges all of
    them. One that hangs (its reply isn't confirmed) does not hold up the others: they are
    acknowledged singly.

    Args:
        channel: on which they came.
        prefetch: tells how many deliveries may be unacknowledged.
    """

    def __init__(self, channel: AckChannel, prefetch: Callable[[], int]) -> None:
        self._channel = channel
        self._prefetch = prefetch
        self._new: set[int] = set()
        self._rejected: set[int] = set()
        self._acknowledged_up_to = 0
        self._ahead: set[int] = set()
        self._wanted = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._closed = False

    def acknowledge(self, tags: Iterable[int], *, rejected: bool = False) -> None:
        """Have deliveries acknowledged, or rejected, each only once; waits for nothing."""
        if rejected:
            self._rejected.update(tags)
        else:
            self._new.update(tags)
        self._wanted.set()

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Write nothing within."""
        self._may_write.clear()
        try:
            yield
        finally:
            self._may_write.set()

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
                await self._may_write.wait()
                await self._acknowledge_new()
                await asyncio.sleep(min(TOGETHER_SECONDS, self._prefetch() / PREFETCH_RATE))
        finally:
            if self._new:  # all of it is being ended: these need not come again
                with suppress(ChannelLost, TimeoutError):
                    async with asyncio.timeout(LAST_SECONDS):
                        await self._acknowledge_new()

    async def _acknowledge_new(self) -> None:
        self._wanted.clear()
        rejected, self._rejected = self._rejected, set()
        try:
            for tag in rejected:
                await self._channel.basic_reject(tag, requeue=False, wait=False)
            self._ahead |= rejected
            up_to, singly = self._take()
            for tag in singly:
                await self._channel.basic_ack(tag, wait=False)
            if up_to is not None:
                await self._channel.basic_ack(up_to, multiple=True, wait=False)
        except Exception as error:
            raise ChannelLost(str(error)) from error

    def _take(self) -> tuple[int | None, list[int]]:
        """What of the new tags one ``multiple`` ack says, if any, and those to be acknowledged
        singly.

        The broker refuses a ``multiple`` whose own tag is not outstanding: so it is a new one.
        """
        new, self._new = self._new, set()
        up_to = None
        while True:
            following = self._acknowledged_up_to + 1
            if following in new:
                new.remove(following)
                up_to = following
            elif following in self._ahead:
                self._ahead.remove(following)
            else:
                break
            self._acknowledged_up_to = following
        self._ahead |= new
        return up_to, sorted(new)
