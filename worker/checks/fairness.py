"""Who is next: of all who have something waiting, the one for whom least was done."""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Whose = TypeVar("Whose", bound=Hashable)
Item = TypeVar("Item")

# Of so many it is remembered what was done for them, though they have nothing waiting. A guess.
REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Turn(Generic[Whose, Item]):
    """What is to be done next, and for whom."""

    whose: Whose
    item: Item


class FairQueue(Generic[Whose, Item]):
    """Items in the order in which they are to be done: each one's own in the order they came, and
    between them by the time that was spent for each. So one whose items take long delays nobody
    else's by more than one of these.
    """

    def __init__(self) -> None:
        self._waiting: dict[Whose, deque[Item]] = {}
        self._spent: dict[Whose, float] = {}
        # The time that was spent for whoever had the last turn. Nobody who comes gets the time
        # back in which he wanted nothing.
        self._now = 0.0

    def put(self, whose: Whose, item: Item) -> None:
        """Add an item of somebody's."""
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
        """Note how long a turn took."""
        self._spent[turn.whose] = self._spent.get(turn.whose, self._now) + seconds
        if len(self._spent) > REMEMBERED + len(self._waiting):
            self._spent = {whose: self._spent[whose] for whose in self._waiting}
