"""The depth of JSON, counted in its text."""

import json
import random
from typing import Any

import pytest

from worker.contract.decode import json_depth

_TEXTS = ["", "a", '"', "\\", '\\"', '"]\\', "[{", "]}", "ü\n\t", '[\\"{\\\\']


def _depth(value: Any) -> int:
    if isinstance(value, (list, dict)):
        return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def _value(draw: random.Random, levels: int) -> Any:
    kind = draw.random()
    if levels <= 0 or kind < 0.3:
        return draw.choice([1, 1.5, None, True, *_TEXTS])
    count = draw.randrange(4)
    if kind < 0.65:
        return [_value(draw, levels - 1) for _ in range(count)]
    return {draw.choice(_TEXTS): _value(draw, levels - 1) for _ in range(count)}


@pytest.mark.parametrize("ascii_only", [True, False])
def test_it_is_the_depth_of_the_value(ascii_only: bool) -> None:
    draw = random.Random(7)
    for _ in range(5_000):
        value = _value(draw, draw.randrange(30))
        text = json.dumps(value, ensure_ascii=ascii_only, indent=draw.choice([None, 1])).encode()
        assert json_depth(text) == _depth(value), text


@pytest.mark.parametrize("levels", [0, 1, 7, 8, 9, 500, 501])
def test_one_deep_value_among_many_is_found(levels: int) -> None:
    text = b"[%b, %b, %b]" % (b"[], " * 50 + b'{"a": 1}', b"[" * levels + b"1" + b"]" * levels, b'"["')
    assert json_depth(text) == max(levels, 1) + 1
