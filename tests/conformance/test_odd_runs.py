"""Every run that a worker makes in a Prefect server's database can be read, listed, handed out,
moved on and deleted by this server. Each odd request goes to both. The resulting runs are read in
each way in which the server shows a run, and are then moved on.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import httpx
import pytest

from tests.conformance.comparison import comparable, differences
from tests.conformance.odd_runs import ODD, Odd, tags
from tests.conformance.prefect_server import VERSION, PrefectServer, install
from tests.conformance.shared import PROCESS_TEMPLATE, Both, Shared, quick_on
from tests.conformance.test_deployments import TYPE
from worker.contract.decode import decode
from worker.contract.message import Message
from worker.runs import completion as rules
from worker.runs.creation import requested_run
from worker.store import Created, Store, Undecided

# The states that a run moves through; a Prefect worker begins with PENDING.
STATES = ("PENDING", "RUNNING", "CANCELLING", "CANCELLED", "COMPLETED")

# The server logs this after its last attempt to store some events.
DROPPED = "Max flush retries"


@dataclass(frozen=True)
class Scene:
    """A flow with a deployment in its own work pool, and an ordinary run that waits there."""

    flow: str
    deployment: str
    pool: str
    queue: str
    parent: str | None
    ordinary: str

    def body(self, odd: Odd) -> bytes:
        """The request as Prefect's endpoint takes it."""
        parent = {"parent_task_run_id": self.parent} if self.parent else {}
        if odd.typed:
            return odd.body(**parent)
        state = {"state": {"type": "SCHEDULED"}}
        where = {"flow_id": self.flow, "deployment_id": self.deployment, "work_pool_name": self.pool}
        return odd.body(**where, **state, **parent)

    def message(self, odd: Odd) -> bytes:
        """The request as a worker takes it."""
        body = self.body(odd)
        return body if not odd.typed else body[:-1] + f', "deployment_id": "{self.deployment}"}}'.encode()


class Handling:
    """Tries every operation of a Prefect server and its client on a run."""

    def __init__(self, both: Both, server: PrefectServer, client: asyncio.subprocess.Process) -> None:
        self.both = both
        self._server = server
        self._client = client

    @classmethod
    @asynccontextmanager
    async def at(cls, both: Both, shared: Shared, folder: Path) -> AsyncIterator[Self]:
        client = await asyncio.create_subprocess_exec(
            str(install(VERSION) / "python"),
            str(Path(__file__).with_name("prefect_client.py")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**shared.server.environment, "PREFECT_HOME": str(folder), "PREFECT_CLIENT_MAX_RETRIES": "0"},
        )
        try:
            yield cls(both, shared.server, client)
        finally:
            assert client.stdin is not None
            client.stdin.close()
            await client.wait()

    async def scene(self, odd: Odd) -> Scene:
        name = f"odd-{uuid4().hex[:12]}"
        post = self.both.post
        template = {"name": name, "type": "process", "base_job_template": PROCESS_TEMPLATE}
        await post("/work_pools/", template)
        flow = (await post("/flows/", {"name": name, **odd.flow}))["id"]
        fields = {"name": name, "flow_id": flow, "work_pool_name": name, **odd.deployment}
        deployment = await post("/deployments/", fields)
        ordinary = {"flow_id": await self.both.new_flow(), "work_pool_name": name}
        run = await post("/flow_runs/", {**ordinary, "state": {"type": "SCHEDULED"}})
        parent = None
        if odd.parent is not None:
            of = await post("/flow_runs/", {"flow_id": ordinary["flow_id"]})
            task = {"flow_run_id": of["id"], "task_key": "t", "dynamic_key": name, **odd.parent}
            parent = (await post("/task_runs/", task))["id"]
        return Scene(flow, deployment["id"], name, deployment["work_queue_id"], parent, run["id"])

    async def failures(self, run_id: str, scene: Scene) -> list[str]:
        """Each question on which the server or its client fails. The last one deletes the run."""
        failed: list[str] = []

        async def ask(
            method: str, path: str, right: Callable[[Any], bool] = lambda _: True, **body: Any
        ) -> None:
            response = await self.both.prefect(method, path, **({"json": body} if body else {}))
            if not response.is_success or (response.content and not right(response.json())):
                failed.append(f"{method} {path}: {response.status_code} {response.text[:300]}")

        def listed(runs: Any) -> bool:
            return run_id in [run["id"] for run in runs]

        flow = {"flows": {"id": {"any_": [scene.flow]}}}

        async def read() -> None:
            await ask("GET", f"/flow_runs/{run_id}", lambda run: bool(run["id"] == run_id))
            await ask("POST", "/flow_runs/filter", listed, **flow)
            await ask("POST", "/flow_runs/paginate", lambda page: listed(page["results"]), **flow)
            await ask("GET", f"/flow_run_states/?flow_run_id={run_id}", bool)

        await read()
        since = {"history_start": "2020-01-01T00:00:00Z", "history_end": "2040-01-01T00:00:00Z"}
        await ask("POST", "/flow_runs/history", bool, **since, history_interval_seconds=10**8, **flow)
        await ask("POST", "/ui/flow_runs/history", bool, **flow)
        await ask("POST", "/ui/flows/next-runs", bool, flow_ids=[scene.flow])
        await ask("POST", "/ui/flow_runs/count-task-runs", flow_run_ids=[run_id])
        await ask("POST", "/flow_runs/count", lambda count: bool(count == 1), **flow)
        await ask("POST", "/flow_runs/lateness", lambda _: True, **flow)
        await ask("GET", f"/flow_runs/{run_id}/graph-v2", bool)
        of_deployment = {"deployment_ids": [scene.deployment]}
        await ask("POST", "/deployments/get_scheduled_flow_runs", listed, **of_deployment)
        of_pool = f"/work_pools/{scene.pool}/get_scheduled_flow_runs"
        handed_out = {run_id, scene.ordinary}
        await ask(
            "POST", of_pool, lambda found: handed_out <= {each["flow_run"]["id"] for each in found}, limit=50
        )
        await ask("POST", f"/work_queues/{scene.queue}/get_runs", limit=50)
        for what, which, wanted in (
            ("run", run_id, {run_id}),
            ("deployment", scene.deployment, {run_id}),
            ("pool", scene.pool, handed_out),
        ):
            answer = await self._ask_client(what, which)
            if isinstance(answer, str) or not wanted <= set(answer):
                failed.append(f"client, {what}: {answer}")
        await ask("PATCH", f"/flow_runs/{run_id}", infrastructure_pid="1")
        await ask("PATCH", f"/flow_runs/{run_id}/labels", mine="x")
        for state in STATES:
            await ask(
                "POST",
                f"/flow_runs/{run_id}/set_state",
                lambda result: bool(result["status"] == "ACCEPT"),
                state={"type": state},
                force=True,
            )
        await read()
        await ask("DELETE", f"/flow_runs/{run_id}")
        gone = await self.both.prefect("GET", f"/flow_runs/{run_id}")
        if gone.status_code != 404:
            failed.append(f"deleted, and there: {gone.status_code}")
        return failed

    async def events_stored(self, run_id: str) -> bool:
        """Whether the server stores a run's RUNNING event. If it does not, its log says so."""
        about = {"filter": {"resource": {"id": [f"prefect.flow-run.{run_id}"]}}}
        dropped = self._server.log().count(DROPPED)
        async with asyncio.timeout(300):
            while True:
                page = await self.both.post("/events/filter", about)
                if any(event["event"] == "prefect.flow-run.Running" for event in page["events"]):
                    return True
                if self._server.log().count(DROPPED) > dropped:
                    return False
                await asyncio.sleep(0.5)

    async def _ask_client(self, what: str, which: str) -> Any:
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self._client.stdin.write(json.dumps((what, which)).encode() + b"\n")
        return json.loads(await self._client.stdout.readline())


@pytest.fixture
async def handling(shared: Shared, amqp_url: str, tmp_path: Path) -> AsyncIterator[Handling]:
    async with Both.at(shared, amqp_url) as both, Handling.at(both, shared, tmp_path) as handling:
        yield handling


# Kinds with a limit of ours, on the database that may treat them differently or on the quicker one,
# and every third run of each other kind. The other combinations are long.
QUICK = (
    ("sqlite", "deep"),
    ("sqlite", "tagged"),
    ("postgresql", "long"),
    ("postgresql", "numbers and times"),
)
SOME = tuple(odd for kind in ("results", "texts", "others") for odd in ODD[kind][::3])
COMBINATIONS = [
    pytest.param("sqlite", SOME, id="sqlite-some"),
    *(
        pytest.param(
            database,
            odds,
            id=f"{database}-{kind}",
            marks=[] if (database, kind) in QUICK else pytest.mark.long,
        )
        for database in ("postgresql", "sqlite")
        for kind, odds in ODD.items()
    ),
]


@pytest.mark.parametrize(("shared", "odds"), COMBINATIONS, indirect=["shared"], scope="package")
async def test_what_is_made_can_be_handled_and_nothing_else_is_made(
    handling: Handling, odds: Sequence[Odd]
) -> None:
    wrong: list[str] = []
    for odd in odds:
        try:
            await _compare(handling, odd)
        except AssertionError as error:
            wrong.append(f"{odd.name}: {str(error)[:1500]}")
    assert not wrong, f"{len(wrong)} of {len(odds)} odd runs\n\n" + "\n\n".join(wrong)


async def _compare(handling: Handling, odd: Odd) -> None:
    both, scene = handling.both, await handling.scene(odd)
    reply = await both.producer.request(
        scene.message(odd), headers=odd.headers, type=TYPE if odd.typed else None
    )
    if odd.usable:
        assert reply.status == 201, reply.headers
        failures = await handling.failures(reply.body["id"], scene)
        assert not failures, failures
    else:
        assert reply.status == 422, reply.body
        flow = {"flows": {"id": {"any_": [scene.flow]}}}
        assert await both.post("/flow_runs/count", flow) == 0
    if not odd.stored:
        return  # its event would drop those of others
    theirs = await both.prefect(
        "POST",
        f"/deployments/{scene.deployment}/create_flow_run" if odd.typed else "/flow_runs/",
        content=scene.body(odd),
        headers={"content-type": "application/json", **odd.headers},
    )
    if not odd.usable:
        made = theirs.is_success and not await handling.failures(theirs.json()["id"], scene)
        assert not made, "Prefect makes it, and can handle it"
    elif theirs.is_success:
        now = datetime.now(UTC)
        records = theirs.json(), reply.body
        for record in records:
            record["tags"] = sorted(set(record["tags"]))
        prefects, ours = (comparable(record, now) for record in records)
        found = list(differences(prefects, ours))
        assert not found, found


@quick_on("sqlite")
async def test_those_that_are_refused_harm_no_other_of_their_batch(handling: Handling) -> None:
    both = handling.both
    refused = [odd for odds in ODD.values() for odd in odds if not odd.usable]
    scenes = [await handling.scene(odd) for odd in refused]
    flow = await both.new_flow()
    sent: list[tuple[str, int]] = []
    for odd, scene in zip(refused, scenes, strict=True):
        type_ = TYPE if odd.typed else None
        for body, status, properties in (
            (json.dumps({"flow_id": flow}).encode(), 201, {}),
            (scene.message(odd), 422, {"headers": odd.headers, "type": type_}),
        ):
            sent.append((await both.producer.publish(body, **properties), status))
    replies = await both.producer.replies_to([correlation_id for correlation_id, _ in sent])
    assert [reply.status for reply in replies] == [status for _, status in sent]


async def test_a_run_that_is_there_is_found_whatever_is_asked_for(handling: Handling) -> None:
    """The worker finds it by its key; Prefect finds it too if its earlier checks pass."""
    both = handling.both
    body = {"flow_id": await both.new_flow(), "idempotency_key": "k"}
    made = await both.producer.request(body)
    found = await both.producer.request({**body, "tags": tags(150)})
    assert (made.status, found.status, found.body["id"]) == (201, 200, made.body["id"])
    theirs = await both.prefect("POST", "/flow_runs/", json={**body, "tags": tags(150)})
    assert (theirs.status_code, theirs.json()["id"]) == (200, made.body["id"])


@pytest.fixture
async def lenient(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """The worker's store without the rule."""
    monkeypatch.setattr(rules, "unusable", lambda *_: None)
    store = await Store.open(shared.database_url, migrate=False, kind="prefect")
    yield store
    await store.close()


async def _made(store: Store, odd: Odd, scene: Scene) -> str:
    message = Message(scene.message(odd), dict(odd.headers), type=TYPE if odd.typed else None)
    new = requested_run(decode(message, max_body_bytes=2**20), datetime.now(UTC))
    (outcome,) = await store.create([new])
    while isinstance(outcome, Undecided) and outcome.ready is not None:  # its check is still running
        await outcome.ready
        (outcome,) = await store.create([new])
    assert isinstance(outcome, Created), odd.name
    return str(outcome.run.id)


@quick_on("sqlite")
@pytest.mark.parametrize(
    "kind", ["tagged", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("deep", "results"))]
)
async def test_what_is_refused_could_not_be_handled(handling: Handling, lenient: Store, kind: str) -> None:
    for odd in (odd for odd in ODD[kind] if not odd.usable):
        scene = await handling.scene(odd)
        assert await handling.failures(await _made(lenient, odd, scene), scene), odd.name


on_postgresql = pytest.mark.parametrize("shared", ["postgresql"], indirect=True, scope="package")


@on_postgresql
async def test_the_first_instant_makes_no_time_of_a_run(handling: Handling, lenient: Store) -> None:
    (odd,) = (odd for odd in ODD["numbers and times"] if not odd.usable)
    scene = await handling.scene(odd)
    await _made(lenient, odd, scene)
    with suppress(httpx.TransportError):  # the server breaks the connection
        flow = {"flows": {"id": {"any_": [scene.flow]}}}
        assert (await handling.both.http.post("/flow_runs/lateness", json=flow)).status_code == 503


@on_postgresql
async def test_what_is_too_long_takes_the_events_of_others_with_it(
    handling: Handling, lenient: Store
) -> None:
    """Prefect stores events together, retries all of them, and then drops all of them."""
    for odd in ODD["long"]:
        scene = await handling.scene(odd)
        run_id = await _made(lenient, odd, scene)
        # The worker sends the first event, which has the first state's name. Here the server sends
        # the event with that name.
        state = json.loads(scene.body(odd))["state"]
        for each in (run_id, scene.ordinary):
            moved = {"state": {**state, "type": "RUNNING"} if each == run_id else {"type": "RUNNING"}}
            await handling.both.post(f"/flow_runs/{each}/set_state", {**moved, "force": True})
        stored = await handling.events_stored(scene.ordinary)
        assert stored is odd.usable, odd.name
