"""JSON encoding: its result, and its memory."""

import os
import subprocess
import sys
import tracemalloc
from typing import Any

import pytest

from worker.contract.encoding import dumps, dumps_text

# An object takes some extra bytes, and the standard library keeps a few hundred. A buffer that is
# kept has some kilobytes even for the smallest result.
BESIDES = 1024


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"a": 1}, id="small"),
        pytest.param({"text": "x" * 3000}, id="a reply"),
        pytest.param({"labels": {f"k{number}": [] for number in range(70_000)}}, id="many lists"),
        pytest.param({"text": "x" * 500_000}, id="long text"),
        pytest.param({"number": 2**70, "text": "x" * 500_000}, id="written by the standard library"),
    ],
)
@pytest.mark.parametrize("write", [dumps, dumps_text])
def test_written_json_takes_no_more_memory_than_its_length(value: Any, write: Any) -> None:
    write(value)  # warm caches, such as compiled patterns
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        written = write(value)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before <= len(written) + BESIDES


# Writes deep lists behind texts of all lengths, so that any bracket may be the last that fits into
# a buffer.
_DEEP = """
import json
from worker.contract.encoding import dumps
for levels in (60, 120, 250, 400):
    deep = json.loads("[" * levels + "]" * levels)
    for count in (2, 5, 8, 9, 13):
        for before in range(0, 2 * levels, 7):
            value = ["x" * before, *[deep] * count]
            assert json.loads(dumps(value)) == value
"""


def test_deep_nesting_overflows_no_buffer() -> None:
    """Python's debug allocator ends the process over a byte behind a buffer."""
    environment = {**os.environ, "PYTHONMALLOC": "debug"}
    ended = subprocess.run([sys.executable, "-c", _DEEP], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("value", "written"),
    [
        pytest.param(2**70, "1180591620717411303424", id="more than 64 bits"),
        pytest.param([float("nan"), float("inf")], "[null,null]", id="no numbers"),
        pytest.param(["\ud800", float("nan")], r'["\ud800",null]', id="half a surrogate pair"),
    ],
)
def test_numbers_and_texts_beyond_json(value: Any, written: str) -> None:
    assert dumps_text(value) == written
