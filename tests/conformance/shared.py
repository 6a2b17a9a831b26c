"""A worker on a Prefect server's database, and the same request to both of them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import make_url

from tests.conformance.comparison import comparable, differences
from tests.conformance.prefect_server import PrefectServer
from tests.support.database import execute
from tests.support.processes import ServerProcess
from tests.support.producer import Producer, Reply
from tests.support.worker_process import ROOT, WorkerProcess

Scope = Literal["package", "module"]
TERMINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
# Prefect computes these when the run is read.
ESTIMATES = ("estimated_run_time", "estimated_start_time_delta")


@dataclass(frozen=True)
class Shared:
    """A Prefect server, and a worker on the same database with its queue."""

    server: PrefectServer
    queue: str
    worker: WorkerProcess

    @property
    def database_url(self) -> str:
        return self.server.environment["PREFECT_API_DATABASE_CONNECTION_URL"]


def quick_on(database: str, fixture: str = "shared", scope: Scope = "package") -> pytest.MarkDecorator:
    """Run a test on this database, and in ``make test-long`` on the other one, too.

    Args:
        fixture: has the kind of database as its parameter, and this scope.
    """
    (other,) = {"postgresql", "sqlite"} - {database}
    kinds = [database, pytest.param(other, marks=pytest.mark.long)]
    return pytest.mark.parametrize(fixture, kinds, indirect=True, scope=scope)


def as_worker(url: str) -> str:
    """The URL for a role with exactly the rights in ``deploy/postgresql``."""
    role = "flow_runs_worker"

    asyncio.run(
        execute(
            url,
            f"DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object THEN END $$",
            (ROOT / "deploy/postgresql/prefect-rights.sql").read_text(),
        )
    )
    return make_url(url).set(username=role).render_as_string(hide_password=False)


class Both:
    """The same request to Prefect's API and to the worker, which share a database."""

    def __init__(self, http: httpx.AsyncClient, producer: Producer) -> None:
        self.http = http
        self.producer = producer

    @classmethod
    @asynccontextmanager
    async def at(cls, shared: "Shared", amqp_url: str) -> "AsyncIterator[Both]":
        """Clients of both: the server's API and the worker's queue."""
        async with (
            httpx.AsyncClient(base_url=shared.server.api, timeout=60) as http,
            Producer(amqp_url, shared.queue) as producer,
        ):
            yield cls(http, producer)

    async def prefect(self, method: str, path: str, **request: Any) -> httpx.Response:
        """A request to Prefect's API, repeated until it is answered.

        On SQLite the server answers 503 while its database is locked. It also closes idle
        connections after five seconds, which may hit the next request.
        """
        async with asyncio.timeout(60):
            while True:
                try:
                    response = await self.http.request(method, path, **request)
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                if response.status_code != 503:
                    return response
                await asyncio.sleep(0.05)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        response = await self.prefect("POST", path, json=body)
        assert response.is_success, response.text
        return response.json() if response.content else None

    async def served(self, run_id: str) -> Any:
        return (await self.prefect("GET", f"/flow_runs/{run_id}")).json()

    async def ended(self, run_id: str) -> Any:
        """The run, once it has ended."""
        async with asyncio.timeout(120):
            while (run := await self.served(run_id))["state_type"] not in TERMINAL:
                await asyncio.sleep(0.3)
        return run

    async def new_flow(self, **fields: Any) -> str:
        return str((await self.post("/flows/", {"name": f"flow-{uuid4()}", **fields}))["id"])

    async def assert_equal(
        self,
        ours: bytes,
        prefects: bytes | None = None,
        same: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send a request to each and assert equal answers.

        Args:
            same: ids in our answer, and the matching ids in Prefect's.
        """
        reply = await self.producer.request(ours, headers=headers)
        content = ours if prefects is None else prefects
        response = await self.prefect(
            "POST",
            "/flow_runs/",
            content=content,
            headers={"content-type": "application/json", **(headers or {})},
        )
        now = datetime.now(UTC)
        text = json.dumps(reply.body)
        for our_id, their_id in (same or {}).items():
            for write in (str, str.upper, lambda each: each.replace("-", "")):
                text = text.replace(write(our_id), write(their_id))
        assert (response.status_code, response.text[:500]) == (reply.status, response.text[:500]), reply.body
        found = list(differences(comparable(response.json(), now), comparable(json.loads(text), now)))
        assert not found, "\n".join(found)
        return reply


def assert_served(reply: Reply, served: Any) -> None:
    """Assert that Prefect serves the reply's record, field by field."""
    ours = {name: value for name, value in reply.body.items() if name not in ESTIMATES}
    theirs = {name: value for name, value in served.items() if name not in ESTIMATES}
    for record in (ours, theirs):
        # A new run's reply has the times with the offset that was sent; Prefect's has it too. Later
        # reads are in UTC.
        for name in ("expected_start_time", "next_scheduled_start_time"):
            record[name] = record[name] and datetime.fromisoformat(record[name])
        record["empirical_policy"]["pause_keys"] = sorted(record["empirical_policy"]["pause_keys"] or [])
    found = list(differences(theirs, ours))
    assert not found, "\n".join(found)


def start_process_worker(server: PrefectServer, pool: str, folder: Path, limit: int = 1) -> ServerProcess:
    """Prefect's own worker, for a process pool; its log is in the folder."""
    options = ("--pool", pool, "--type", "process", "--limit", str(limit))
    command = [server.program("prefect"), "worker", "start", *options]
    return ServerProcess(command, folder / "prefect-worker.log", env=server.environment)


# The part of `prefect work-pool create --type process` that is needed here.
PROCESS_TEMPLATE = {
    "job_configuration": {
        "command": "{{ command }}",
        "env": "{{ env }}",
        "labels": "{{ labels }}",
        "name": "{{ name }}",
        "stream_output": "{{ stream_output }}",
        "working_dir": "{{ working_dir }}",
    },
    "variables": {
        "type": "object",
        "properties": {
            "command": {"type": "string"},
            "env": {"type": "object", "additionalProperties": {"type": "string"}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "name": {"type": "string"},
            "stream_output": {"type": "boolean", "default": True},
            "working_dir": {"type": "string"},
        },
    },
}

GREETING = """
from prefect import flow

@flow(log_prints=True)
def greet(greeting: str = "goodbye", name: str = "nobody") -> None:
    print(f"{greeting} {name}")
"""


async def deploy_greeting(both: Both, folder: Path, name: str = "") -> str:
    """A deployment on a process pool of the same name, whose flow prints its parameters; returns
    ``FLOW NAME/DEPLOYMENT NAME``.
    """
    (folder / "flows.py").write_text(GREETING)
    name = name or f"greeting-{uuid4().hex[:8]}"
    await both.post("/work_pools/", {"name": name, "type": "process", "base_job_template": PROCESS_TEMPLATE})
    fields = {
        "name": name,
        "flow_id": (await both.post("/flows/", {"name": name}))["id"],
        "work_pool_name": name,
        "path": str(folder),
        "entrypoint": "flows.py:greet",
        "parameters": {"greeting": "hello", "name": "deployment"},
        "tags": ["nightly"],
    }
    await both.post("/deployments/", fields)
    return f"{name}/{name}"
