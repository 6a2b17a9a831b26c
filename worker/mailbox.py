"""The hand-over between two stages of the line: what one stage puts, the next takes in bulk.

Unbounded by itself, since the consumer's prefetch bounds what is in flight. Single event loop, not
thread safe.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue that is read in batches: whatever waits, up to a limit, and never a wait for more
    than the first item.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: T) -> None:
        """Add one item. Never blocks."""
        self._items.append(item)
        self._wake()

    def close(self) -> None:
        """Say that nothing more comes. What is still inside is taken first."""
        self._closed = True
        self._wake()

    async def take(self, limit: int, *, size: Callable[[T], int] | None = None, max_size: int = 0) -> list[T]:
        """Wait for an item, then return all that wait, in order.

        Args:
            limit: how many items at the most.
            size: gives an item's size; with it the batch ends before its sizes add up to more than
                ``max_size`` (a single item that is larger still comes, alone).
            max_size: see ``size``; the same unit.

        Returns:
            One to ``limit`` items; an empty list when the mailbox is closed and empty.
        """
        while not self._items:
            if self._closed:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        count = min(limit, len(self._items))
        if size is not None:
            total = 0
            for index, item in enumerate(islice(self._items, count)):
                total += size(item)
                if total > max_size and index:
                    count = index
                    break
        return [self._items.popleft() for _ in range(count)]

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
