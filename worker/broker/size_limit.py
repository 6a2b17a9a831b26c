"""Finds the broker's limit on message sizes, before a message is published that may exceed it."""

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import structlog

from worker.broker.connection import ChannelLost
from worker.broker.publisher import Publisher

log = structlog.get_logger(__name__)

# Bytes. No broker has a lower limit: a guess.
TAKEN_SIZE = 64 * 1024
_LIMIT = re.compile(r"larger than (?:configured )?max size (\d+)")


class SizeLimit:
    """The broker closes the channel over a message larger than its ``max_message_size``. The fate
    of earlier messages on it is unknown then. So a message to a missing queue tries a new size.

    Args:
        max_size: the limit in bytes, until the broker shows a lower one.
        another_publisher: opens a separate channel for the trial.
        raise_if_lost: raises its argument if the whole session has ended.

    Attributes:
        taken: the largest accepted size so far, in bytes.
        max_size: the limit in bytes, as known so far.
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
        """True if the broker accepts a message of ``size`` bytes.

        Raises:
            ChannelLost: the session ended.
        """
        async with self._finding_out:
            # Try the double first, so that a few trials are enough.
            for tried in (min(2 * size, self.max_size), size):
                if self.taken < size <= self.max_size:
                    await self._try(tried)
        return size <= self.max_size

    async def _try(self, size: int) -> None:
        """Learn the limit from the broker's reason for closing the channel. If the connection ends
        instead, try again: only the second end counts.
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
