"""``db prune`` in a Prefect server's database: which rows go with a run, and which stay."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.engine import make_url

from tests.conformance.shared import Both, Shared
from tests.support.command import command
from tests.support.database import execute, fetch
from tests.support.rights import PRUNE_PREFECT, grants

# A role that may delete old runs, with the rights in deploy/docs/rights-and-security.md.
PRUNER = (
    "CREATE ROLE flow_runs_pruner LOGIN",
    *grants(PRUNE_PREFECT, "flow_runs_pruner").splitlines(),
)


@pytest.fixture
async def both(shared: Shared, amqp_url: str) -> AsyncIterator[Both]:
    async with Both.at(shared, amqp_url) as both:
        yield both


async def test_old_runs_go_with_all_that_is_theirs(both: Both, shared: Shared) -> None:
    """Prefect's own vacuum decides the same. The role has the rights for pruning alone."""
    flow = await both.new_flow()

    async def run(**fields: Any) -> str:
        made = await both.post("/flow_runs/", {"flow_id": flow, "state": {"type": "COMPLETED"}, **fields})
        return str(made["id"])

    async def task(flow_run_id: str) -> str:
        body = {"flow_run_id": flow_run_id, "task_key": "t", "dynamic_key": "0", "state": {"type": "RUNNING"}}
        return str((await both.post("/task_runs/", body))["id"])

    async def artifact(flow_run_id: str, key: str | None) -> str:
        body = {"flow_run_id": flow_run_id, "type": "markdown", "data": "text", "key": key}
        return str((await both.post("/artifacts/", body))["id"])

    old, recent, running = await run(), await run(), await run(state={"type": "RUNNING"})
    task_of_old, task_of_recent = await task(old), await task(recent)
    subflow, subflow_of_recent = [
        await run(parent_task_run_id=each) for each in (task_of_old, task_of_recent)
    ]
    key = f"report-{uuid4().hex}"
    artifacts = [await artifact(old, each) for each in (None, key, key)]
    for each in (old, subflow, recent):
        log = {"name": "l", "level": 20, "message": "m", "timestamp": datetime.now(UTC).isoformat()}
        await both.post("/logs/", [{**log, "flow_run_id": each}] * 3)  # type: ignore[arg-type]
        await both.post(f"/flow_runs/{each}/input", {"key": "k", "value": "v"})

    async def logs(flow_run_id: str) -> int:
        body = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}}
        return len(await both.post("/logs/filter", body))

    async with asyncio.timeout(180):
        # Prefect writes logs with a delay.
        while [await logs(each) for each in (old, subflow, recent)] != [3, 3, 3]:
            await asyncio.sleep(0.1)
    url, pruner = shared.database_url, shared.database_url
    aged = ", ".join(f"'{each}'" for each in (old, running, subflow, subflow_of_recent))
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.partition(":///")[2], timeout=60)) as file, file:
            file.execute(f"UPDATE flow_run SET end_time = '2024-01-01 00:00:00.000000' WHERE id IN ({aged})")
    else:
        await execute(url, f"UPDATE flow_run SET end_time = '2024-01-01' WHERE id IN ({aged})", *PRUNER)
        pruner = make_url(url).set(username="flow_runs_pruner").render_as_string(hide_password=False)
    refused = await command(
        "db", "prune", "--older-than", "90d", database_url=url, database_kind="standalone"
    )
    assert refused.code == 1
    done = await command("db", "prune", "--older-than", "90d", database_url=pruner, database_kind="prefect")
    assert done.code == 0, done.err
    # Without its parent, the subflow is a run of its own.
    assert "1 old runs to delete: completed 1." in done.out
    assert "2 deleted" in done.out

    async def there(path: str) -> bool:
        return (await both.prefect("GET", path)).status_code == 200

    runs = (old, subflow, recent, running, subflow_of_recent)
    assert [await there(f"/flow_runs/{each}") for each in runs] == [False, False, True, True, True]
    assert [await there(f"/task_runs/{each}") for each in (task_of_old, task_of_recent)] == [False, True]
    assert [await logs(each) for each in (old, subflow, recent)] == [0, 0, 3]
    # Prefect shows the newest artifact of a key separately.
    assert [await there(f"/artifacts/{each}") for each in artifacts] == [False, False, True]
    assert await there(f"/artifacts/{key}/latest")
    assert await there(f"/flow_runs/{recent}/input/k")
    rows = await fetch(url, f"SELECT * FROM flow_run_input WHERE flow_run_id IN ('{old}', '{subflow}')")
    assert rows == []
