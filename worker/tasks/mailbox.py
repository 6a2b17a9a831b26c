"""The hand-over between two stages of the line: one stage puts items, the next takes batches.

Single event loop, not thread safe; one task takes.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue that is read in batches. A batch is all that waits, up to a limit. Only its first
    item is waited for.

    Args:
        size: returns an item's size, in any unit.
    """

    def __init__(self, size: Callable[[T], int] = lambda item: 1) -> None:
        self._size_of = size
        self._items: deque[T] = deque()
        self._closed = False
        self._changed: asyncio.Event = asyncio.Event()

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._items)

    def put(self, item: T) -> None:
        """Add one item. Never blocks."""
        self._items.append(item)
        self._changed.set()

    def close(self) -> None:
        """End the queue. Items still inside are taken first."""
        self._closed = True
        self._changed.set()

    async def take(self, limit: int, *, max_size: int | None = None) -> list[T]:
        """Wait for an item, then return all that wait, in order.

        Args:
            limit: the largest number of items.
            max_size: the batch's largest total size. An item that is larger comes alone.

        Returns:
            One to ``limit`` items; an empty list when the mailbox is closed and empty.
        """
        while not self._items:
            if self._closed:
                return []
            self._changed.clear()
            await self._changed.wait()
        count, total = 0, 0
        for item in islice(self._items, limit):
            size = self._size_of(item)
            if count and max_size is not None and total + size > max_size:
                break
            total += size
            count += 1
        return [self._items.popleft() for _ in range(count)]
