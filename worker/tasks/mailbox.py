"""The hand-over between two stages of the line: what one stage puts, the next takes in bulk.

Single event loop, not thread safe; one task takes, and one waits for room.
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

    Args:
        size: gives an item's size, in whatever unit.

    Attributes:
        size: of all that is inside.
    """

    def __init__(self, size: Callable[[T], int] = lambda item: 1) -> None:
        self.size = 0
        self._size_of = size
        self._items: deque[T] = deque()
        self._closed = False
        self._changed: asyncio.Event = asyncio.Event()
        self._taken: asyncio.Event = asyncio.Event()

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._items)

    def put(self, item: T) -> None:
        """Add one item. Never blocks."""
        self._items.append(item)
        self.size += self._size_of(item)
        self._changed.set()

    def close(self) -> None:
        """Say that nothing more comes. What is still inside is taken first."""
        self._closed = True
        self._changed.set()

    async def room(self, max_size: int, beside: Callable[[], int] = lambda: 0) -> None:
        """Wait until what is inside, and beside it, has at most this size. What is beside has to
        come in, and be taken, to leave.
        """
        while self.size + beside() > max_size:
            self._taken.clear()
            await self._taken.wait()

    async def take(self, limit: int, *, max_size: int | None = None) -> list[T]:
        """Wait for an item, then return all that wait, in order.

        Args:
            limit: how many items at the most.
            max_size: the batch ends before its sizes add up to more than this (a single item that
                is larger still comes, alone).

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
        self.size -= total
        self._taken.set()
        return [self._items.popleft() for _ in range(count)]
