"""Reads of runs: the same run from ``GET /api/flow_runs/{id}`` and from a worker on the same
database. Runs in databases of our own are read in test_conformance.py.
"""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from tests.conformance.cases import STATES
from tests.conformance.shared import Both, Shared, assert_served, deploy_greeting
from tests.conftest import StartWorker
from tests.support.producer import Producer

READ = {"type": "read_flow_run"}


@pytest.fixture
async def reader(shared: Shared, start_worker: StartWorker, amqp_url: str, queue: str) -> AsyncIterator[Both]:
    """A worker on the Prefect server's database that tells states."""
    start_worker(shared.database_url, states="final", database_kind="prefect")
    async with (
        httpx.AsyncClient(base_url=shared.server.api, timeout=60) as http,
        Producer(amqp_url, queue) as producer,
    ):
        yield Both(http, producer)


async def test_a_run_of_prefects_is_read_as_prefect_reads_it(reader: Both, tmp_path: Path) -> None:
    """In each state, with and without a deployment, in the words of the server that wrote it."""
    flow_id = await reader.new_flow(labels={"team": "a"})
    run_ids: list[str] = []
    for state in STATES:
        for fields in (
            {},
            {"name": "named", "message": "why", "data": {"type": "unpersisted"}},
            {"state_details": {"scheduled_time": "2031-01-02T03:04:05.5+02:00", "pause_key": "k"}},
        ):
            body = {"flow_id": flow_id, "tags": ["a"], "state": {"type": state, **fields}}
            run_ids.append((await reader.post("/flow_runs/", body))["id"])
    started = (await reader.post("/flow_runs/", {"flow_id": flow_id, "state": {"type": "PENDING"}}))["id"]
    for state in ("RUNNING", "COMPLETED"):
        body = {"state": {"type": state, "data": {"result": state}}}
        await reader.post(f"/flow_runs/{started}/set_state", body)
    deployment = await deploy_greeting(reader, tmp_path)
    (found,) = await reader.post(
        "/deployments/filter", {"deployments": {"name": {"any_": [deployment.split("/")[1]]}}}
    )
    made = await reader.post(f"/deployments/{found['id']}/create_flow_run", {"idempotency_key": "k"})
    for run_id in (*run_ids, started, made["id"]):
        reply = await reader.producer.request({"id": run_id}, **READ)
        assert reply.status == 200
        assert_served(reply, await reader.served(run_id))
    record = reply.body
    assert record["work_pool_name"] == deployment.split("/")[1]


async def test_a_missing_run_is_answered_as_prefect_does(reader: Both) -> None:
    run_id = str(uuid4())
    response = await reader.prefect("GET", f"/flow_runs/{run_id}")
    reply = await reader.producer.request({"id": run_id}, **READ)
    assert (reply.status, reply.body) == (response.status_code, response.json())
    assert reply.headers["x-error"] == f"There is no flow run '{run_id}'."


async def test_an_id_may_be_written_as_for_prefect(reader: Both) -> None:
    flow_id = await reader.new_flow()
    run_id = (await reader.post("/flow_runs/", {"flow_id": flow_id}))["id"]
    for written in (run_id.upper(), UUID(run_id).hex):
        response = await reader.prefect("GET", f"/flow_runs/{written}")
        reply = await reader.producer.request({"id": written}, **READ)
        assert (response.status_code, reply.status) == (200, 200)
        assert response.json()["id"] == reply.body["id"] == run_id


async def test_lateness_is_estimated_as_prefect_does(reader: Both) -> None:
    """The two estimates, which depend on the time of the read."""
    flow_id = await reader.new_flow()
    begun = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    for state in (
        {"type": "SCHEDULED", "state_details": {"scheduled_time": begun}},
        {"type": "RUNNING"},
    ):
        run_id = (await reader.post("/flow_runs/", {"flow_id": flow_id, "state": state}))["id"]
        reply = await reader.producer.request({"id": run_id}, **READ)
        theirs = await reader.served(run_id)
        for name in ("estimated_run_time", "estimated_start_time_delta"):
            assert abs(reply.body[name] - theirs[name]) < 60, name
        assert json.loads(reply.raw)["state_type"] == state["type"]
