"""Counts the deliveries whose answers wait off the line: for a queue that refuses them, or for the
trial of a direct reply-to. Knows no broker.
"""

from collections import Counter
from collections.abc import Iterable


class SetAside:
    """The deliveries that are set aside, and the queues for which their answers wait."""

    def __init__(self) -> None:
        self._queues: dict[int, set[str]] = {}
        self._waiting: Counter[str] = Counter()
        self._replaced = 0

    def __len__(self) -> int:
        """The number of deliveries that are set aside."""
        return len(self._queues)

    def add(self, tag: int, queue: str) -> None:
        """Note that a delivery's answer now waits for this queue."""
        if not self.waits(tag, queue):
            self._queues.setdefault(tag, set()).add(queue)
            self._waiting[queue] += 1

    def leave(self, tag: int, queue: str) -> None:
        """Note that it no longer waits for this queue, if it did. It need not be settled yet."""
        if self.waits(tag, queue):
            self._queues[tag].remove(queue)
            self._waiting[queue] -= 1
            if not self._waiting[queue]:
                del self._waiting[queue]

    def remove(self, tags: Iterable[int]) -> None:
        """Forget settled deliveries. They need not have been set aside."""
        for tag in tags:
            for queue in tuple(self._queues.get(tag, ())):
                self.leave(tag, queue)
            self._queues.pop(tag, None)
        self._replaced = min(self._replaced, len(self._queues))

    def waits(self, tag: int, queue: str) -> bool:
        """True if a delivery's answer waits for this queue."""
        return queue in self._queues.get(tag, ())

    def waiting_for(self, queue: str) -> int:
        """The number of deliveries that wait for this queue."""
        return self._waiting[queue]

    def take_up_prefetch(self, prefetch: int) -> bool:
        """True once newly set aside deliveries fill half of the prefetch: the broker should deliver
        as many others.
        """
        due = len(self._queues) - self._replaced >= prefetch / 2 > 0
        if due:
            self._replaced = len(self._queues)
        return due
