"""A Prefect server and a worker for all tests of this folder."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conformance.cases import written_for
from tests.conformance.comparison import comparable
from tests.conformance.prefect_server import PrefectServer, prefect_server
from tests.conformance.shared import Shared, as_worker
from tests.support.postgresql import PostgreSQL
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess

# The limit of a run's parameters on SQLite in bytes; one enumerated case exceeds the default.
OTHER_LIMIT = 300_000


@pytest.fixture(scope="package")
def prefect(postgresql: PostgreSQL) -> Iterator[PrefectServer]:
    with prefect_server(postgresql.create_database()) as server:
        yield server


@pytest.fixture(scope="package")
def flow_id(prefect: PrefectServer, worker_queue: str) -> str:
    """A flow for each worker, so that the keys of the cases are new to both sides."""
    response = httpx.post(f"{prefect.api}/flows/", json={"name": f"conformance of {worker_queue}"})
    return str(response.json()["id"])


@pytest.fixture(scope="package", params=["sqlite", "postgresql", "prefect"])
def worker_queue(
    request: pytest.FixtureRequest, rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A worker's queue: on its own PostgreSQL or SQLite database, or on the Prefect server's."""
    folder = tmp_path_factory.mktemp("conformance")
    queue = f"conformance-{uuid4().hex[:8]}.create"
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{folder}/flow_runs.db"
    elif request.param == "prefect":
        url = request.getfixturevalue("prefect").database_url
    else:
        url = request.getfixturevalue("postgresql").create_database()
    environment = {
        "WORKER_AMQP_URL": rabbitmq.url,
        "WORKER_DATABASE_URL": url,
        "WORKER_QUEUE": queue,
        "WORKER_MIGRATE": "true",
        "WORKER_HTTP_PORT": "0",
        "WORKER_STATES": "final",
    }
    worker = WorkerProcess(folder / "worker.log", environment)
    try:
        worker.wait_until_logged("serving")
        yield queue
        assert worker.terminate() == 0, worker.output
    finally:
        worker.kill()


@dataclass(frozen=True)
class Answers:
    """The answers of Prefect and a worker to the same request. Status 599 means that Prefect broke
    the connection.
    """

    prefect: tuple[int, Any]
    ours: tuple[int, Any]


class Both:
    """Sends a request to both.

    If both write into one database, the worker gets another flow than Prefect, so that neither
    finds the other's keys. Its answer then gets the id of Prefect's flow.

    Attributes:
        broken: how often Prefect answered 5xx or broke the connection; the test counts it.
        share: whether both write into one database.
    """

    def __init__(self, http: httpx.AsyncClient, producer: Producer, *, share: bool) -> None:
        self.http = http
        self.producer = producer
        self.share = share
        self._twins: dict[str, str] = {}
        self.broken = 0

    async def flow(self) -> str:
        """Make a flow."""
        response = await self.http.post("/flows/", json={"name": str(uuid4())})
        return str(response.json()["id"])

    async def _twin(self, flow_id: str) -> str:
        if flow_id not in self._twins:
            self._twins[flow_id] = await self.flow() if self.share else flow_id
        return self._twins[flow_id]

    async def answers(self, flow_id: str, body: bytes, headers: dict[str, str] | None = None) -> Answers:
        # Made before the request, which may break Prefect's connection.
        twin = await self._twin(flow_id)
        try:
            response = await self.http.post(
                "/flow_runs/", content=body, headers={"content-type": "application/json", **(headers or {})}
            )
            prefect = response.status_code, response.json()
        except httpx.TransportError as error:
            prefect = 599, repr(error)
        now = datetime.now(UTC)
        reply = await self.producer.request(written_for(twin, body, flow_id), headers=headers)
        ours = json.loads(written_for(flow_id, reply.raw, twin))
        return Answers((prefect[0], comparable(prefect[1], now)), (reply.status, comparable(ours, now)))


@pytest.fixture
async def both(
    prefect: PrefectServer, rabbitmq: RabbitMQ, worker_queue: str, request: pytest.FixtureRequest
) -> AsyncIterator[Both]:
    share = "[prefect" in request.node.name
    async with (
        httpx.AsyncClient(base_url=prefect.api, timeout=30) as http,
        Producer(rabbitmq.url, worker_queue) as producer,
    ):
        yield Both(http, producer, share=share)


@pytest.fixture(scope="package", params=["postgresql", "sqlite"])
def shared(
    request: pytest.FixtureRequest, rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    prefect: PrefectServer
    if request.param == "postgresql":
        prefect = request.getfixturevalue("prefect")
    else:
        prefect = prefect_server(f"sqlite+aiosqlite:///{folder}/prefect.db")
        prefect.environment["PREFECT_SERVER_API_MAX_PARAMETER_SIZE"] = str(OTHER_LIMIT)
    queue = f"shared-{uuid4().hex[:8]}.create"
    url = prefect.environment["PREFECT_API_DATABASE_CONNECTION_URL"]
    environment = {
        "WORKER_DATABASE_KIND": "prefect",
        "WORKER_AMQP_URL": rabbitmq.url,
        "WORKER_DATABASE_URL": url if request.param == "sqlite" else as_worker(url),
        "WORKER_QUEUE": queue,
        "WORKER_HTTP_PORT": "0",
    }
    if request.param == "sqlite":
        environment["WORKER_MAX_PARAMETER_SIZE"] = str(OTHER_LIMIT)
    worker = WorkerProcess(folder / "worker.log", environment)
    try:
        if request.param == "sqlite":
            worker.wait_until_logged("There is no file")
            assert not (folder / "prefect.db").exists()
            prefect.__enter__()
        worker.wait_until_logged("serving")
        yield Shared(prefect, queue, worker)
        assert worker.terminate() == 0, worker.output
    finally:
        worker.kill()
        if request.param == "sqlite":
            prefect.__exit__()
