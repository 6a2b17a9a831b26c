"""Finds the bad items of a batch that fails, by trying it in halves."""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Failed:
    """The result of an item that failed.

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
    """Try items together. If that fails, try halves, down to single items.

    One bad item among ``n`` takes about ``2 * log2(n)`` further attempts.

    Args:
        items: the batch. Without items the result is an empty list.
        attempt: does all the items given, or none. Returns a result for each.
        stop: errors that no item causes. They end the attempts: the items of that attempt, and
            those not tried yet, fail with the error.

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
