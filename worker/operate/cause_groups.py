"""Counts dead letters by their cause. Knows no queue."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from worker.operate.causes import Cause
from worker.operate.letter import Letter

# Letters of a cause that are named as examples.
EXAMPLES = 3
# Most causes to tell apart. Beyond them letters count as one more: anybody can write a reason into
# a message of this queue.
MAX_CAUSES = 1000


@dataclass(slots=True)
class CauseGroup:
    """The letters of one cause.

    Attributes:
        count: of the letters.
        bytes: of their bodies.
        first, last: the times of the first and of the last refusal, if any letter has one.
        examples: the ids of the last ones, the newest first.
    """

    cause: Cause
    count: int = 0
    bytes: int = 0
    first: datetime | None = None
    last: datetime | None = None
    _examples: deque[str] = field(default_factory=lambda: deque(maxlen=EXAMPLES))

    @property
    def examples(self) -> Sequence[str]:
        return tuple(reversed(self._examples))

    def add(self, letter: Letter) -> None:
        """Count a letter."""
        self.count += 1
        self.bytes += letter.delivery.size
        if letter.id not in self._examples:  # identical letters share it
            self._examples.append(letter.id)
        if (at := letter.failed) is not None:
            self.first = at if self.first is None else min(self.first, at)
            self.last = at if self.last is None else max(self.last, at)


class Causes:
    """Counts letters by cause. Its size does not grow with their number."""

    def __init__(self) -> None:
        self._groups: dict[str, CauseGroup] = {}

    def add(self, letter: Letter) -> None:
        """Count a letter."""
        cause = letter.cause
        if cause.id not in self._groups and len(self._groups) >= MAX_CAUSES:
            cause = Cause("others", None, f"more than {MAX_CAUSES:,} causes")
        self._groups.setdefault(cause.id, CauseGroup(cause)).add(letter)

    def groups(self) -> list[CauseGroup]:
        """The most frequent cause first."""
        return sorted(self._groups.values(), key=lambda group: (-group.count, group.cause.id))
