"""``python -m tests.benchmarks.lateness``: how late a heartbeat in the event loop is while costly
checks are made, and what becomes of each. A heartbeat is due each 2 ms.
"""

import asyncio
import json
import os
from time import monotonic
from typing import Any
from uuid import UUID

import uvloop

from tests.unit.test_checks import EXPRESSION, tree
from worker.checks.checks import Checks, Pending
from worker.checks.jobs import Verdict

BEAT = 0.002
UNIQUE = {"properties": {"x": {"type": "array", "uniqueItems": True}}}
PATTERN = {"properties": {"x": {"pattern": "^(a+)+$"}}}
WIDE = {"properties": {f"p{number}": {"type": "integer", "title": "t"} for number in range(30_000)}}
ODD = {**WIDE, "not": {"required": ["gone"]}}
HOSTILE: dict[str, Any] = {
    "$defs": {
        "n": {
            "anyOf": [{"properties": {"x": {"$ref": "#/$defs/n"}}, "required": [f"r{n}"]} for n in range(12)]
        }
    },
    "$ref": "#/$defs/n",
}
MODELS: dict[str, Any] = {
    "properties": {"x": {"items": {"anyOf": [{"type": "object", "required": [f"r{n}"]} for n in range(200)]}}}
}


def chain(depth: int) -> Any:
    """Objects in each other."""
    return {} if depth == 0 else {"x": chain(depth - 1)}


CASES: dict[str, tuple[Any, Any]] = {
    "ordinary": ({"properties": {"x": {"type": "string"}}}, {"x": "a"}),
    "uniqueItems, 40,000 objects": (UNIQUE, {"x": [{"a": number} for number in range(40_000)]}),
    "uniqueItems, 80,000 objects": (UNIQUE, {"x": [{"a": number} for number in range(80_000)]}),
    "recursive union, valid, depth 14": (EXPRESSION, {"e": tree(14, 1)}),
    "recursive union, valid, depth 24": (EXPRESSION, {"e": tree(24, 1)}),
    "recursive union, wrong leaf, depth 24": (EXPRESSION, {"e": tree(24, "x")}),
    "hostile anyOf, depth 60": (HOSTILE, chain(60)),
    "200 alternatives, 1,000 objects": (MODELS, {"x": [{"a": 1}] * 1000}),
    "pattern without end": (PATTERN, {"x": "a" * 60 + "!"}),
    "schema of 30,000 properties": (WIDE, {"p1": 1}),
    "the same, with a keyword that is looked up": (ODD, {"p1": 1}),
    "300,000 small values": ({"properties": {"x": {"items": {"type": "integer"}}}}, {"x": [1] * 300_000}),
}


async def _final(checks: Checks, schema: str, value: Any) -> Verdict:
    while True:
        try:
            return checks.parameters(schema, value, UUID(int=1), 1000)
        except Pending as pending:
            await pending.ready


async def main() -> None:
    """Print a line for each case."""
    late = 0.0

    async def beat() -> None:
        nonlocal late
        while True:
            due = monotonic() + BEAT
            await asyncio.sleep(BEAT)
            late = max(late, monotonic() - due)

    beating = asyncio.create_task(beat())
    checks = Checks()
    await asyncio.sleep(0.5)
    print(f"idle: the loop is late by {late * 1000:.0f} ms at most; load {os.getloadavg()[0]:.1f}")
    for name, (schema, value) in CASES.items():
        text = json.dumps(schema)
        await asyncio.sleep(3 * BEAT)
        late, started = 0.0, monotonic()
        found = await _final(checks, text, value)
        seconds = monotonic() - started
        await asyncio.sleep(3 * BEAT)
        size = len(json.dumps(value))
        print(
            f"{name} ({len(text):,} and {size:,} bytes): {found.outcome} after {seconds:.2f} s, the loop late "
            f"by {late * 1000:.0f} ms at most; {found.message[:60]}"
        )
    await checks.close()
    beating.cancel()


if __name__ == "__main__":
    uvloop.run(main())
