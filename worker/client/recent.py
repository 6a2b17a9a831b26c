"""Remembers a bounded number of ids."""

from collections import deque

# Far more than are published twice at once: a worker that crashes publishes its last batch again.
REMEMBERED = 10_000


class Recent:
    """The last ids that were added.

    Args:
        most: how many are remembered.
    """

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._ids: set[str] = set()
        self._order: deque[str] = deque()

    def add(self, id_: str) -> bool:
        """Add an id. Returns False if it was there."""
        if id_ in self._ids:
            return False
        self._ids.add(id_)
        self._order.append(id_)
        if len(self._order) > self._most:
            self._ids.discard(self._order.popleft())
        return True
