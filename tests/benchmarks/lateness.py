"""``python -m tests.benchmarks.lateness``: measures the delay of a heartbeat in the event loop
during costly checks, and prints the outcome of each.
"""

import asyncio
import json
import os
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

import uvloop

from tests.faults.beating_worker import BEAT, Heartbeat
from tests.support.costly import CHECKS, MODELS, UNIQUE, WIDE, Costly
from worker.checks.checks import Checks, Pending
from worker.checks.jobs import Verdict

CASES = {
    "ordinary": Costly({"properties": {"x": {"type": "string"}}}, {"x": "a"}, 201),
    **CHECKS,
    "a schema of 2 MB with a keyword that is looked up": Costly(
        {**WIDE, "not": {"required": ["gone"]}}, {"p1": 1}, 422
    ),
    "200 alternatives, 1,000 objects": Costly(MODELS, {"x": [{"a": 1}] * 1000}, 409),
    "uniqueItems, 80,000 objects": Costly(UNIQUE, {"x": [{"a": number} for number in range(80_000)]}, 422),
}


async def _final(checks: Checks, schema: str, value: Any) -> Verdict:
    while True:
        try:
            return checks.parameters(schema, value, UUID(int=1), 1000)
        except Pending as pending:
            await pending.ready


async def main() -> None:
    """Print a line for each case."""
    folder = tempfile.TemporaryDirectory()
    heartbeat = Heartbeat(Path(folder.name, "beats"))
    beating = asyncio.create_task(heartbeat.beat())
    checks = Checks()
    await asyncio.sleep(0.5)
    print(
        f"idle: the loop is late by {heartbeat.lateness() * 1000:.0f} ms at most; load {os.getloadavg()[0]:.1f}"
    )
    for name, case in CASES.items():
        text, value = json.dumps(case.schema), case.parameters
        await asyncio.sleep(2 * BEAT)
        heartbeat.reset()
        started = monotonic()
        found = await _final(checks, text, value)
        seconds = monotonic() - started
        await asyncio.sleep(2 * BEAT)
        size = len(json.dumps(value))
        print(
            f"{name} ({len(text):,} and {size:,} bytes): {found.outcome} after {seconds:.2f} s, the loop late "
            f"by {heartbeat.lateness() * 1000:.0f} ms at most, {heartbeat.busy() * 1000:.0f} of them its own; {found.message[:60]}"
        )
    await checks.close()
    beating.cancel()
    folder.cleanup()


if __name__ == "__main__":
    uvloop.run(main())
