"""A store whose runs have a column that no Prefect has: ``python -m tests.support.newer_column URL
FLOW``. The row is replaced before anything else is imported; all other code is the worker's.
"""

import asyncio
import json
import os
import sys
from dataclasses import make_dataclass
from typing import Any
from uuid import uuid4

from tests.support.worker_process import ROOT
from worker.contract import flow_run

COLUMN = "newest"
ADD = f"ALTER TABLE flow_run ADD COLUMN {COLUMN} VARCHAR"


async def newer_worker(url: str, flow_id: str | None = None) -> dict[str, Any]:
    """Run :func:`_create` with this database, in a process of its own. Returns its result."""
    arguments = (url, flow_id or str(uuid4()))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.newer_column", *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


async def _create(url: str, flow_id: str) -> dict[str, Any]:
    """Make two runs together, and ask for the first again, with another value in its column.

    Returns:
        The columns that the store does without, and the newer column of the run that is there.
    """
    from tests.support.requests import request
    from worker.store import Created, Existing, Store

    def asked(key: str, value: str) -> Any:
        new = request(flow_id=flow_id, idempotency_key=key)
        setattr(new.run, COLUMN, value)
        return new

    store = await Store.open(url, migrate=True)
    first, second = f"first-{uuid4()}", f"second-{uuid4()}"
    made = await store.create([asked(first, "one"), asked(second, "two")])
    (again,) = await store.create([asked(first, "three")])
    lacks = sorted(store.statements.lacks)
    await store.close()
    assert all(isinstance(each, Created) for each in made), made
    assert isinstance(again, Existing), again
    return {"lacks": lacks, "shown": getattr(again.run, COLUMN)}


if __name__ == "__main__":
    flow_run.FlowRun = make_dataclass(  # type: ignore[misc]  # that is the newer row
        "FlowRun",
        [(COLUMN, str, flow_run.since("99.0", default="usual"))],
        bases=(flow_run.FlowRun,),
        slots=True,
    )
    print(json.dumps(asyncio.run(_create(*sys.argv[1:]))))
