"""Bounds the bytes that are read from a database at a time. Further items wait for their turn."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from worker.store.outcome import Undecided
from worker.tasks.budget import Budget
from worker.tasks.turns import Turns

Item = TypeVar("Item")

NO_ROOM = "the rows that it refers to have no room beside those of others"


def in_turns(
    items: Iterable[tuple[Item, int]], max_size: int, turns: Turns
) -> Iterator[tuple[Item, Undecided | None]]:
    """Yield each item with None if there is room for it now, or as undecided until its turn.

    Args:
        items: with their sizes in bytes. The first one always has room.
        max_size: bytes that are read together, now and in each turn.
    """
    budget, turn = Budget(max_size), None
    for item, size in items:
        if not budget.take(size):
            budget, turn = Budget(max_size), Undecided(NO_ROOM, turns.wait())
            budget.take(size)
        yield item, turn
