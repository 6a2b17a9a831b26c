"""How large a message the broker takes: found out before one is published that may be too large."""

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import structlog

from worker.broker.connection import ChannelLost
from worker.broker.publisher import Publisher

log = structlog.get_logger(__name__)

# No broker is limited to smaller messages than that, in bytes. A guess.
TAKEN_SIZE = 64 * 1024
_LIMIT = re.compile(r"larger than (?:configured )?max size (\d+)")


class SizeLimit:
    """The broker closes the channel over a message larger than its ``max_message_size``, and
    nobody knows then what became of those before it. So a size that it has not taken yet is tried
    first, by a message to nobody.

    Args:
        max_size: bytes that it takes, as far as one knows.
        another_publisher: opens a channel to try them on.
        raise_if_lost: raises what it is given where the session has ended, too.

    Attributes:
        taken: the largest size that it is known to take, in bytes.
        max_size: what is larger it does not take; bytes.
    """

    def __init__(
        self,
        max_size: int,
        another_publisher: Callable[[], AbstractAsyncContextManager[Publisher]],
        raise_if_lost: Callable[[ChannelLost], None],
    ) -> None:
        self.taken = min(TAKEN_SIZE, max_size)
        self.max_size = max_size
        self._another_publisher = another_publisher
        self._raise_if_lost = raise_if_lost
        self._finding_out = asyncio.Lock()

    async def takes(self, size: int) -> bool:
        """Whether the broker takes a message of so many bytes.

        Raises:
            ChannelLost: the session ended.
        """
        async with self._finding_out:
            # More first, so that a few tries do.
            for tried in (min(2 * size, self.max_size), size):
                if self.taken < size <= self.max_size:
                    await self._try(tried)
        return size <= self.max_size

    async def _try(self, size: int) -> None:
        """What the broker says when it closes the channel teaches the limit. A connection that ends
        says less: it counts the second time.
        """
        for last_try in (False, True):
            try:
                async with self._another_publisher() as publisher:
                    await publisher.try_out(size)
                self.taken = size
                return
            except ChannelLost as lost:
                self._raise_if_lost(lost)
                if not (lost.closed_over or last_try):
                    continue
                limit = _LIMIT.search(str(lost))
                self.max_size = int(limit[1]) if limit else size - 1
                if limit:
                    self.taken = self.max_size
                log.warning("broker_limits_messages", max_size=self.max_size)
                return
