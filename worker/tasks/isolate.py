"""Finds the items that are to blame where a batch fails: the batch is tried in halves."""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Failed:
    """What stands in place of an item's result.

    Attributes:
        error: why the item failed alone, or why it was not tried.
    """

    error: Exception


async def isolate(
    items: Sequence[Item],
    attempt: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
    *,
    stop: type[Exception] | tuple[type[Exception], ...] = (),
) -> list[Result | Failed]:
    """Try items together, and where that fails in halves, down to single items.

    With one bad item among ``n``, that takes about ``2 * log2(n)`` attempts more.

    Args:
        items: one or more; none gives an empty list.
        attempt: does all of the items it is given, or none of them; returns a result for each.
        stop: errors that no item is to blame for. No further attempt is made: the items of that
            attempt, and those not tried yet, fail with it.

    Returns:
        For each item, in order, its result or why it failed.
    """
    results: list[Result | Failed] = []
    pieces = deque([items] if items else [])
    while pieces:
        piece = pieces.popleft()
        try:
            results += await attempt(piece)
        except stop as error:
            return results + [Failed(error)] * (len(items) - len(results))
        except Exception as error:
            if len(piece) == 1:
                results.append(Failed(error))
            else:
                half = len(piece) // 2
                pieces.extendleft((piece[half:], piece[:half]))
    return results
