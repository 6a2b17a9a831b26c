"""Which items of a failing batch are to blame."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import pytest

from worker.tasks.isolate import Failed, isolate


class Away(Exception):
    pass


class Attempts:
    """Doubles numbers, fails on bad ones, and raises another error on some."""

    def __init__(self, bad: AbstractSet[int], away: AbstractSet[int] = frozenset()) -> None:
        self.bad, self.away = bad, away
        self.made: list[list[int]] = []

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.made.append(list(items))
        if self.away & set(items):
            raise Away
        if wrong := self.bad & set(items):
            raise ValueError(min(wrong))
        return [2 * item for item in items]


async def test_a_batch_without_bad_items_is_tried_once():
    attempts = Attempts(set())
    assert await isolate(range(100), attempts) == [2 * item for item in range(100)]
    assert len(attempts.made) == 1


async def test_nothing_is_tried_without_items():
    attempts = Attempts(set())
    assert await isolate([], attempts) == []
    assert not attempts.made


@pytest.mark.parametrize("bad", [{0}, {99}, {50}, {3, 4, 77}, set(range(100))])
async def test_bad_items_alone_fail(bad: set[int]):
    results = await isolate(range(100), Attempts(bad))
    for item, result in enumerate(results):
        if item in bad:
            assert isinstance(result, Failed)
            assert result.error.args == (item,)
        else:
            assert result == 2 * item


async def test_one_bad_item_among_many_costs_few_attempts():
    attempts = Attempts({317})
    await isolate(range(512), attempts)
    assert len(attempts.made) == 1 + 2 * 9


async def test_what_no_item_is_to_blame_for_ends_the_attempts_and_keeps_the_results():
    attempts = Attempts({0}, {3})
    # 0 to 3 fail together, then 0 and 1, and 0 alone; 2 and 3 meet the other error.
    results = await isolate(range(8), attempts, stop=Away)
    assert all(isinstance(result, Failed) and isinstance(result.error, Away) for result in results)
    attempts = Attempts({0}, {7})
    attempts.away = set()

    async def attempt(items: Sequence[int]) -> list[int]:
        if list(items) == [4, 5, 6, 7]:
            raise Away
        return await attempts(items)

    results = await isolate(range(8), attempt, stop=Away)
    assert [type(each).__name__ for each in results] == ["Failed", *["int"] * 3, *["Failed"] * 4]
    first = results[0]
    assert isinstance(first, Failed)
    assert isinstance(first.error, ValueError)
