"""The deliveries whose answers wait for a queue, off the line: for one that does not take them, or
for a direct reply-to that is being tried; knows no broker.
"""

from collections import Counter
from collections.abc import Iterable


class SetAside:
    """Counts the deliveries whose answers wait, each for one queue at a time."""

    def __init__(self) -> None:
        self._queues: dict[int, str] = {}
        self._waiting: Counter[str] = Counter()
        self._replaced = 0

    def __len__(self) -> int:
        """How many deliveries are set aside."""
        return len(self._queues)

    def __contains__(self, tag: int) -> bool:
        """Whether the delivery with this tag is set aside."""
        return tag in self._queues

    def add(self, tag: int, queue: str) -> None:
        """Note that a delivery's answer waits for this queue from now on."""
        self._forget(tag)
        self._queues[tag] = queue
        self._waiting[queue] += 1

    def remove(self, tags: Iterable[int]) -> None:
        """Note that these deliveries are settled, whether they were set aside or not."""
        for tag in tags:
            self._forget(tag)
        self._replaced = min(self._replaced, len(self._queues))

    def waiting_for(self, queue: str) -> int:
        """How many wait for this queue."""
        return self._waiting[queue]

    def take_up_prefetch(self, prefetch: int) -> bool:
        """Whether those that came since this was last true take up half of the prefetch, so that
        as many others are to be delivered in their place.
        """
        due = len(self._queues) - self._replaced >= prefetch / 2 > 0
        if due:
            self._replaced = len(self._queues)
        return due

    def _forget(self, tag: int) -> None:
        if queue := self._queues.pop(tag, None):
            self._waiting[queue] -= 1
            if not self._waiting[queue]:
                del self._waiting[queue]
