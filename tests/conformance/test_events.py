"""The event of a run made by a message equals that of a run made by Prefect's API for the same
request. Both are read through Prefect's API.
"""

import asyncio
import base64
import json
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conformance.cases import STATES
from tests.conformance.comparison import differences
from tests.conformance.prefect_server import PrefectServer, prefect_server
from tests.conformance.shared import Both, quick_on
from tests.support.command import command
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess
from worker.events.hand_over import PREFETCH

# The body that an automation sends when it creates a run.
AUTOMATION = {
    "prefect-automation-id": str(uuid4()),
    "prefect-automation-name": base64.b64encode("Nightly ü".encode()).decode(),
}


# Prefect itself fails on non-ASCII ones.
AUTH = "admin:pass:word"


@dataclass(frozen=True)
class Scene:
    """A server, and a worker's environment with events on its database."""

    server: PrefectServer
    environment: dict[str, str]

    @property
    def login(self) -> dict[str, Any]:
        """The arguments for an HTTP client of the server."""
        auth = self.server.environment.get("PREFECT_SERVER_API_AUTH_STRING")
        if auth is None:
            return {}
        headers = {"Authorization": f"Basic {base64.b64encode(auth.encode()).decode()}"}
        token = httpx.get(f"{self.server.api}/csrf-token?client=tests", headers=headers, timeout=60).json()
        return {
            "headers": {
                **headers,
                "Prefect-Csrf-Client": "tests",
                "Prefect-Csrf-Token": token["token"],
            }
        }


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def scene(
    request: pytest.FixtureRequest, rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """The server on SQLite has an auth string and CSRF protection."""
    folder = tmp_path_factory.mktemp("events")
    environment = {
        "WORKER_AMQP_URL": rabbitmq.url,
        "WORKER_QUEUE": f"events-{uuid4().hex[:8]}.create",
        "WORKER_HTTP_PORT": "0",
    }
    with ExitStack() as stack:
        if request.param == "postgresql":
            server: PrefectServer = request.getfixturevalue("prefect")
        else:
            server = prefect_server(f"sqlite+aiosqlite:///{folder}/prefect.db")
            server.environment |= {
                "PREFECT_SERVER_API_AUTH_STRING": AUTH,
                "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            }
            environment["WORKER_PREFECT_API_AUTH_STRING"] = AUTH
            stack.enter_context(server)
        environment |= {"WORKER_DATABASE_URL": server.database_url, "WORKER_PREFECT_API_URL": server.api}
        worker = WorkerProcess(folder / "worker.log", environment)
        stack.callback(worker.kill)
        worker.wait_until_logged("serving")
        yield Scene(server, environment)
        assert worker.terminate() == 0, worker.output


class Events(Both):
    """Makes the same run both ways, and reads the events of both."""

    async def both(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[Any, Any]:
        """The runs that Prefect's API and the worker make for a request."""
        response = await self.prefect("POST", "/flow_runs/", json=body, headers=headers)
        assert response.status_code == 201, response.text
        if "idempotency_key" in body:
            body = {**body, "idempotency_key": str(uuid4())}
        reply = await self.producer.request(body, headers=headers)
        assert reply.status == 201, reply.body
        return response.json(), reply.body

    async def of(self, runs: list[Any]) -> dict[str, Any]:
        """The first events of these runs by the runs' ids, once all have arrived."""
        ids = [f"prefect.flow-run.{run['id']}" for run in runs]
        async with asyncio.timeout(120):
            while True:
                found: dict[str, Any] = {}
                for start in range(0, len(ids), 40):
                    query = {"filter": {"resource": {"id": ids[start : start + 40]}}}
                    page = await self.post("/events/filter", query)
                    assert not page["next_page"]
                    found |= {each["resource"]["prefect.resource.id"]: each for each in page["events"]}
                if len(found) == len(ids):
                    return {run["id"]: found[f"prefect.flow-run.{run['id']}"] for run in runs}
                await asyncio.sleep(0.5)


@pytest.fixture
async def events(scene: Scene) -> AsyncIterator[Events]:
    async with (
        httpx.AsyncClient(base_url=scene.server.api, timeout=60, **scene.login) as http,
        Producer(scene.environment["WORKER_AMQP_URL"], scene.environment["WORKER_QUEUE"]) as producer,
    ):
        yield Events(http, producer)


def comparable(event: Any, run: Any) -> Any:
    """An event with placeholders for its run's ids and times, which are checked first."""
    assert event["id"] == run["state_id"]
    assert event["resource"]["prefect.state-timestamp"] == event["occurred"].replace("Z", "+00:00")
    assert event["occurred"] == run["state"]["timestamp"]
    text = json.dumps({name: value for name, value in event.items() if name != "received"})
    for value, name in ((run["id"], "RUN"), (run["state_id"], "STATE"), (run["name"], "NAME")):
        text = text.replace(json.dumps(value)[1:-1], name)
    for time in (event["occurred"], event["resource"]["prefect.state-timestamp"]):
        text = text.replace(time, "NOW")
    return json.loads(text)


async def test_each_event_is_the_one_that_prefect_emits(events: Events) -> None:
    """Every state, with and without each row that a run may refer to."""
    pool = f"pool-{uuid4()}"
    await events.post("/work_pools/", {"name": pool, "type": "process"})
    await events.post(f"/work_pools/{pool}/queues", {"name": "fast"})
    flow = (await events.post("/flows/", {"name": f"flow-{uuid4()}", "tags": ["of the flow", "both"]}))["id"]
    deployment = (
        await events.post("/deployments/", {"name": pool, "flow_id": flow, "tags": ["of the deployment"]})
    )["id"]
    parent = (await events.post("/flow_runs/", {"flow_id": flow}))["id"]
    bodies: list[tuple[dict[str, Any], dict[str, str] | None]] = [
        ({}, None),
        ({"name": "a name"}, AUTOMATION),
        ({"tags": ["both", "b", "a", "ü", ""]}, None),
        ({"deployment_id": deployment}, None),
        ({"deployment_id": deployment, "tags": ["a"]}, AUTOMATION),
        ({"work_pool_name": pool}, None),
        ({"work_pool_name": pool, "work_queue_name": "fast"}, None),
        ({"work_queue_name": "no pool's"}, None),
        ({"idempotency_key": str(uuid4()), "work_pool_name": pool, "deployment_id": deployment}, None),
        ({"state": {"type": "RUNNING"}, "empirical_policy": {"resuming": True}}, None),
        ({"state": {"type": "PENDING", "name": "", "message": ""}}, None),
        ({"state": {"type": "FAILED", "message": "x" * 100_010}}, None),
        ({"state": {"type": "FAILED", "message": "<" * 100_000 + "ü" * 150_000 + ">"}}, None),
        ({"state": {"type": "PAUSED", "state_details": {"pause_reschedule": True}}}, None),
        ({"tags": [f"tag {number}" for number in range(97)]}, None),
    ]
    for state in STATES:
        bodies.append(({"state": {"type": state}}, None))
        bodies.append(({"state": {"type": state, "name": "Mine", "message": "why"}}, None))
    pairs = [await events.both({"flow_id": flow, **body}, headers) for body, headers in bodies]
    # Each subflow needs its own parent task run: the parent's state follows the subflow's.
    tasks = [
        await events.post(
            "/task_runs/",
            {
                "flow_run_id": parent,
                "task_key": "t",
                "dynamic_key": str(n),
                "name": "task",
                "tags": ["of the task"],
            },
        )
        for n in range(2)
    ]
    theirs = await events.post("/flow_runs/", {"flow_id": flow, "parent_task_run_id": tasks[0]["id"]})
    ours = (await events.producer.request({"flow_id": flow, "parent_task_run_id": tasks[1]["id"]})).body
    pairs.append((theirs, ours))
    bodies.append(({"parent_task_run_id": "one of two"}, None))
    found = await events.of([run for pair in pairs for run in pair])
    for run, task in ((theirs, tasks[0]), (ours, tasks[1])):
        its = json.dumps(found[run["id"]])
        assert task["id"] in its
        found[run["id"]] = json.loads(its.replace(task["id"], "TASK"))
    wrong = []
    for (body, _), (theirs, ours) in zip(bodies, pairs, strict=True):
        unlike = list(
            differences(comparable(found[theirs["id"]], theirs), comparable(found[ours["id"]], ours))
        )
        if unlike:
            wrong.append(f"{str(body)[:200]}: {unlike}")
    assert not wrong, "\n".join(wrong)


async def test_the_event_of_a_run_of_a_deployment(events: Events) -> None:
    pool = f"pool-{uuid4()}"
    await events.post("/work_pools/", {"name": pool, "type": "process"})
    flow = (await events.post("/flows/", {"name": f"flow-{uuid4()}", "tags": ["of the flow"]}))["id"]
    deployment = {"name": "d", "flow_id": flow, "tags": ["of the deployment"], "work_pool_name": pool}
    deployment_id = (await events.post("/deployments/", deployment))["id"]
    for body in ({}, {"tags": ["mine"], "work_queue_name": "made for it"}):
        theirs = await events.post(f"/deployments/{deployment_id}/create_flow_run", body)
        message = {"deployment_id": deployment_id, **body}
        ours = (await events.producer.request(message, type="create_flow_run_from_deployment")).body
        found = await events.of([theirs, ours])
        roles = [each["prefect.resource.role"] for each in found[ours["id"]]["related"]]
        assert roles[:4] == ["flow", "deployment", "work-queue", "work-pool"]
        unlike = differences(comparable(found[theirs["id"]], theirs), comparable(found[ours["id"]], ours))
        assert list(unlike) == []


async def test_beyond_prefects_limit_the_events_name_is_cut(events: Events) -> None:
    """Prefect's own endpoint fails, and makes no run."""
    flow = (await events.post("/flows/", {"name": f"flow-{uuid4()}"}))["id"]
    name = "n" * 2000
    body = {"flow_id": flow, "state": {"type": "PENDING", "name": name}}
    with suppress(httpx.TransportError):  # the server may break the connection
        while (failed := await events.http.post("/flow_runs/", json=body)).status_code == 503:
            await asyncio.sleep(0.05)  # SQLite is locked
        assert failed.status_code == 500
    assert await events.post("/flow_runs/filter", {"flows": {"id": {"any_": [flow]}}}) == []
    run = (await events.producer.request(body)).body
    found = (await events.of([run]))[run["id"]]
    assert found["event"] == f"prefect.flow-run.{name}"[:1024]
    assert found["resource"]["prefect.state-name"] == name


async def test_a_redelivered_request_has_the_event_of_the_first_state(
    events: Events, scene: Scene, tmp_path: Path
) -> None:
    """The worker is killed between the commit and the outbox, and the run moves on before another
    worker gets the request.
    """
    queue = f"events-{uuid4().hex[:8]}.create"
    environment = {**scene.environment, "WORKER_QUEUE": queue}
    seam = "after commit, before event"
    crashing = [sys.executable, "-m", "tests.faults.crashing_worker", seam, str(tmp_path / "crashed")]
    worker = WorkerProcess(tmp_path / "crashing.log", environment, crashing)
    again: WorkerProcess | None = None
    flow = (await events.post("/flows/", {"name": f"flow-{uuid4()}"}))["id"]
    try:
        await asyncio.to_thread(worker.wait_until_logged, "serving")
        async with Producer(environment["WORKER_AMQP_URL"], queue) as producer:
            body = {"flow_id": flow, "name": "mine", "tags": ["a"], "idempotency_key": "k"}
            sent = await producer.publish(body)
            assert await asyncio.to_thread(worker.process.wait, 180) == -signal.SIGKILL
            (run,) = await events.post("/flow_runs/filter", {"flow_runs": {"name": {"any_": ["mine"]}}})
            first = run["state_id"]
            await events.post(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "RUNNING"}})
            again = WorkerProcess(tmp_path / "again.log", environment)
            (reply,) = await producer.replies_to([sent])
            assert (reply.status, reply.body["state_type"]) == (200, "RUNNING")
            async with asyncio.timeout(120):
                while True:
                    query = {"filter": {"resource": {"id": [f"prefect.flow-run.{run['id']}"]}}}
                    found = (await events.post("/events/filter", query))["events"]
                    if len(found) == 2:
                        break
                    await asyncio.sleep(0.5)
    finally:
        worker.kill()
        if again is not None:
            again.kill()
    by_id = {each["id"]: each for each in found}
    pending = by_id.pop(first)
    (running,) = by_id.values()
    assert running["follows"] == first
    assert pending["follows"] is None
    assert (pending["event"], running["event"]) == ("prefect.flow-run.Pending", "prefect.flow-run.Running")
    assert pending["resource"]["prefect.run-count"] == "0"
    assert pending["occurred"] < running["occurred"]


@pytest.mark.parametrize("scene", ["sqlite"], indirect=True, scope="module")
async def test_a_row_that_cannot_be_read_costs_the_events_of_its_own_runs_alone(
    events: Events, scene: Scene
) -> None:
    unreadable, good = [(await events.post("/flows/", {"name": f"flow-{uuid4()}"}))["id"] for _ in range(2)]
    with closing(sqlite3.connect(scene.server.database_url.partition(":///")[2], timeout=60)) as file:
        file.execute("UPDATE flow SET tags = '[' WHERE id = ?", (unreadable,))
        file.commit()
        flows = [good, good, unreadable, good]
        sent = await asyncio.gather(*(events.producer.publish({"flow_id": each}) for each in flows))
        replies = await events.producer.replies_to(sent)
        assert {reply.status for reply in replies} == {201}
        await events.of([reply.body for reply in replies if reply.body["flow_id"] == good])
        file.execute("UPDATE flow SET tags = '[]' WHERE id = ?", (unreadable,))
        file.commit()


@quick_on("postgresql", "scene", "module")
async def test_the_reply_does_not_wait_for_the_outbox_and_the_acknowledgement_does(
    events: Events, scene: Scene, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    """The API is stopped, so the outbox keeps its events; its queue is full."""
    queue = f"events-{uuid4().hex[:8]}.create"
    environment = {
        **scene.environment,
        "WORKER_QUEUE": queue,
        "WORKER_PREFECT_API_URL": "http://127.0.0.1:9/api",
    }

    async def unacknowledged(name: str) -> int:
        listed = await asyncio.to_thread(
            rabbitmq.ctl, "list_queues", "--no-table-headers", "name", "messages_unacknowledged"
        )
        return next(int(line.split()[1]) for line in listed.splitlines() if line.split()[0] == name)

    flow = (await events.post("/flows/", {"name": f"flow-{uuid4()}"}))["id"]
    worker = WorkerProcess(tmp_path / "worker.log", environment)
    try:
        await asyncio.to_thread(worker.wait_until_logged, "serving")
        async with Producer(environment["WORKER_AMQP_URL"], queue) as producer:
            with rabbitmq.full(f"{queue}.events", 1):
                for _ in range(PREFETCH + 10):
                    assert (await producer.request({"flow_id": flow})).status == 201
                async with asyncio.timeout(60):
                    while not await unacknowledged(queue):
                        await asyncio.sleep(0.1)
                assert "events_not_taken" in worker.output
            async with asyncio.timeout(60):
                while await unacknowledged(queue):
                    await asyncio.sleep(0.1)
            held = await unacknowledged(f"{queue}.events")
            assert await producer.depth(f"{queue}.events") + held == PREFETCH + 10
        assert worker.terminate() == 0
    finally:
        worker.kill()


async def test_doctor_knows_whether_it_is_the_server_of_the_database(scene: Scene, tmp_path: Path) -> None:
    settings = {name.removeprefix("WORKER_").lower(): value for name, value in scene.environment.items()}
    done = await command("doctor", "--json", **settings)
    found = {each["what"]: each for each in json.loads(done.out)}
    assert done.code == 0, done.out
    assert "Prefect 3.9.1" in found["Prefect's API"]["detail"]
    assert "it is its server" in found["Prefect's database"]["detail"]
    assert found["outbox"]["verdict"] == "ok"
    wrong = await command("doctor", "--json", **{**settings, "prefect_api_auth_string": "wrong"})
    (about,) = [each for each in json.loads(wrong.out) if each["what"] == "Prefect's API"]
    if "prefect_api_auth_string" in settings:
        assert about["verdict"] == "problem"
        assert "answers 401 (check WORKER_PREFECT_API_AUTH_STRING, or its file)" in about["detail"]
        assert wrong.code == 1
