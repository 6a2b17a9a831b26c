"""A fair queue: the owner that has used the least time is next."""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Whose = TypeVar("Whose", bound=Hashable)
Item = TypeVar("Item")

# Most owners without waiting items whose time is remembered. A guess.
REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Turn(Generic[Whose, Item]):
    """The next item and its owner."""

    whose: Whose
    item: Item


class FairQueue(Generic[Whose, Item]):
    """A queue of items that belong to owners. An owner's items keep their order, and the owner with
    the least time spent is next. So an owner's long items delay the others by one item at most.
    """

    def __init__(self) -> None:
        self._waiting: dict[Whose, deque[Item]] = {}
        self._spent: dict[Whose, float] = {}
        # The time spent on the owner of the last turn. A new owner starts from it: idle time earns
        # nothing.
        self._now = 0.0

    def put(self, whose: Whose, item: Item) -> None:
        """Add an owner's item."""
        if whose not in self._waiting:
            self._waiting[whose] = deque()
            self._spent[whose] = max(self._now, self._spent.get(whose, 0.0))
        self._waiting[whose].append(item)

    def next(self) -> Turn[Whose, Item] | None:
        """Take the next item; None if nothing waits."""
        if not self._waiting:
            return None
        whose = min(self._waiting, key=self._spent.__getitem__)
        self._now = self._spent[whose]
        items = self._waiting[whose]
        item = items.popleft()
        if not items:
            del self._waiting[whose]
        return Turn(whose, item)

    def spent(self, turn: Turn[Whose, Item], seconds: float) -> None:
        """Add the seconds of a turn to its owner's time."""
        self._spent[turn.whose] = self._spent.get(turn.whose, self._now) + seconds
        if len(self._spent) > REMEMBERED + len(self._waiting):
            self._spent = {whose: self._spent[whose] for whose in self._waiting}
