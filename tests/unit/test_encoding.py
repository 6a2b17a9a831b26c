"""JSON encoding: its result, and its memory."""

import tracemalloc
from typing import Any

import pytest

from worker.contract.encoding import dumps, dumps_text

# An object takes some extra bytes, and the standard library keeps a few hundred. orjson keeps 4 KB
# even for the smallest result.
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
