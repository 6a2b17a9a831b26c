"""Ends of runs that a real Prefect server's workers and clients bring about, and the client that
waits for them.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.conformance.prefect_server import PrefectServer
from tests.conformance.shared import (
    PROCESS_TEMPLATE,
    TERMINAL,
    Both,
    Shared,
    as_worker,
    start_process_worker,
)
from tests.conftest import StartWorker
from tests.support.node import NodeProducer
from tests.support.producer import Producer
from worker.client import FlowRunClient, WaitTimedOut

FLOW = """
import os, signal, time
from prefect import flow

@flow
def end(how: str) -> str:
    if how == "FAILED":
        raise ValueError(how)
    if how == "CRASHED":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "CANCELLED":
        time.sleep(600)
    return how
"""


@asynccontextmanager
async def waiting(
    server: PrefectServer, amqp_url: str, queue: str
) -> AsyncIterator[tuple[Both, FlowRunClient]]:
    async with (
        httpx.AsyncClient(base_url=server.api, timeout=60) as http,
        Producer(amqp_url, queue) as producer,
        FlowRunClient(amqp_url, queue=queue) as client,
    ):
        yield Both(http, producer), client


async def test_each_end_of_a_run_is_waited_for(
    prefect: PrefectServer, start_worker: StartWorker, amqp_url: str, queue: str, tmp_path: Path
) -> None:
    """One process worker executes four runs, which end in the four ways."""
    url = await asyncio.to_thread(as_worker, prefect.database_url)
    start_worker(url, states="all", database_kind="prefect")
    name = f"ends-{uuid4().hex[:8]}"
    (tmp_path / "flows.py").write_text(FLOW)
    async with waiting(prefect, amqp_url, queue) as (both, client):
        pool = {"name": name, "type": "process", "base_job_template": PROCESS_TEMPLATE}
        await both.post("/work_pools/", pool)
        flow_id = (await both.post("/flows/", {"name": name}))["id"]
        fields = {"name": name, "flow_id": flow_id, "work_pool_name": name, "path": str(tmp_path)}
        deployment = await both.post("/deployments/", fields | {"entrypoint": "flows.py:end"})
        worker = start_process_worker(prefect, name, tmp_path, limit=4)
        try:
            failed = client.states(f"FAILED.*.{deployment['id']}.*")
            first_failed = asyncio.ensure_future(anext(failed))
            ends = {
                how: asyncio.create_task(
                    client.run_deployment(f"{name}/{name}", parameters={"how": how}, wait=300)
                )
                for how in TERMINAL
            }
            node = asyncio.create_task(_by_node(tmp_path, amqp_url, queue, f"{name}/{name}"))
            async with asyncio.timeout(300):
                cancelled = None
                while cancelled is None:  # cancelled as by a user, once it runs
                    runs = await both.post("/flow_runs/filter", {"flows": {"id": {"any_": [flow_id]}}})
                    running = (each for each in runs if each["state_type"] == "RUNNING")
                    cancelled = next((r for r in running if r["parameters"]["how"] == "CANCELLED"), None)
                    await asyncio.sleep(0.5)
                state = {"state": {"type": "CANCELLING"}, "force": True}
                await both.post(f"/flow_runs/{cancelled['id']}/set_state", state)
                for how, end in ends.items():
                    record = await end
                    served = await both.served(str(record.id))
                    assert (record.state_type, served["state_type"]) == (how, how), worker.log_tail()
                    assert str(record.state_id) == served["state_id"]
                    assert record.parameters == {"how": how}
                assert (await first_failed).id == (await ends["FAILED"]).id
                await failed.aclose()
                assert await node in ("COMPLETED", None), worker.log_tail()
        finally:
            worker.stop()


async def _by_node(folder: Path, amqp_url: str, queue: str, deployment: str) -> str | None:
    """How a run ended that Node.js started and waited for; None without Node.js."""
    if not shutil.which("npm"):
        return None
    node = await asyncio.to_thread(NodeProducer, folder, amqp_url, queue)
    arguments = ("--wait", deployment, "key", '{"how": "COMPLETED"}')
    done = await asyncio.to_thread(node.create, *arguments)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout.partition("\n")[2])["state_type"])


@pytest.mark.parametrize("states", ["final", "all"])
async def test_states_that_are_written_through_prefects_api_are_waited_for(
    shared: Shared, start_worker: StartWorker, amqp_url: str, queue: str, states: str
) -> None:
    """Runs of Prefect's own, whose ends come before, during and after the wait begins."""
    start_worker(shared.database_url, states=states, database_kind="prefect")
    async with waiting(shared.server, amqp_url, queue) as (both, client), asyncio.timeout(240):
        flow_id = await both.new_flow()

        async def made() -> str:
            body = {"flow_id": flow_id, "state": {"type": "RUNNING"}}
            return str((await both.post("/flow_runs/", body))["id"])

        async def end(run_id: str, state: str, pause: float = 0.0) -> None:
            await asyncio.sleep(pause)
            body = {"state": {"type": state, "message": "the end"}, "force": True}
            await both.post(f"/flow_runs/{run_id}/set_state", body)

        for state in TERMINAL:
            before, during, after = [await made() for _ in range(3)]
            await end(before, state)
            record, *others = await asyncio.gather(
                client.wait_for_flow_run(before),
                client.wait_for_flow_run(during),
                client.wait_for_flow_run(after),
                end(during, state),
                end(after, state, 1.0),
            )
            for each in (record, others[0], others[1]):
                assert each.state_type == state
                assert each.state.message == "the end"
                assert str(each.state_id) == (await both.served(str(each.id)))["state_id"]

        # A run that is run again: the first end that is seen, and then the next one.
        again = await made()
        with pytest.raises(WaitTimedOut) as over:
            await client.wait_for_flow_run(again, timeout=1)
        assert over.value.record is not None
        assert over.value.record.state_type == "RUNNING"
        first = asyncio.create_task(client.wait_for_flow_run(again))
        await end(again, "FAILED", 0.5)
        assert (await first).state_type == "FAILED"
        await end(again, "SCHEDULED")
        second = asyncio.create_task(client.wait_for_flow_run(again))
        # The first end was told long ago, unless the worker is slow.
        await end(again, "COMPLETED", 1.0)
        assert (await second).state_type in ("FAILED", "COMPLETED")
        assert (await client.wait_for_flow_run(again)).state_type == "COMPLETED"
