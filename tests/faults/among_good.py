"""Requests of every bad kind among many good ones. All good ones are answered, the bad ones get the
right answer, and nothing needs a restart.

``python -m tests.faults.among_good`` serves each kind alone and in tens, on each database, by one
worker and by three. With and without the bad ones, it prints the duration of the good requests, the
longest pause of the event loop and the workers' largest memory. With ``--stop`` it then sends
SIGTERM amid requests of the kind. ``--python`` measures the worker of another interpreter.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import re
import sqlite3
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import httpx
from rich.console import Console
from sqlalchemy.engine import make_url

from tests.conformance.prefect_server import PrefectServer
from tests.faults import beating_worker
from tests.faults.beating_worker import Heartbeat
from tests.support.costly import CHECKS, TEMPLATE
from tests.support.database import execute, fetch
from tests.support.postgresql import PostgreSQL
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import ROOT, WorkerProcess
from worker.store import migrations

console = Console(width=150)

Where = Literal["postgresql", "sqlite", "prefect"]
EVERYWHERE: tuple[Where, ...] = ("postgresql", "sqlite", "prefect")
ON_POSTGRESQL: tuple[Where, ...] = ("postgresql", "prefect")
# Seconds after which a good request counts as held up.
PATIENCE = 240.0
MIB = 1024 * 1024
GOOD = 2_000
LARGE_DEPLOYMENTS = 10
# Existing runs, whose keys are requested again in upper case.
SEEDS = 100
FROM_DEPLOYMENT = "create_flow_run_from_deployment"
# PostgreSQL's own codes, which a trigger may raise as well, and one unknown code.
RAISED = ("42501", "42P01", "40001", "55000", "0A000", "57014", "25006", "53100", "08006", "P0001", "45000")


@dataclass(frozen=True)
class Bad:
    """A kind of request that must not hold up others.

    Attributes:
        name: the fault.
        body: of the request with this number; otherwise like a good one.
        statuses: that may be answered.
        properties: AMQP properties besides a good one's, by the request's number.
        where: databases on which it is possible.
        replied: whether a reply can reach the requester.
        many: how many to send in the run with many of them.
        costly: whether its check takes seconds.
    """

    name: str
    body: Callable[[int, "Scene"], dict[str, Any] | bytes]
    statuses: frozenset[int]
    properties: Callable[[int], dict[str, Any]] = field(default=lambda _: {})
    where: tuple[Where, ...] = EVERYWHERE
    replied: bool = True
    many: int = 10
    costly: bool = False


@dataclass(frozen=True)
class Scene:
    """A database that supports all bad kinds, and the broker's queue.

    Attributes:
        url: the database's, for the workers.
        admin: the same for its owner.
        deployments: ids of deployments by name; empty without a Prefect database.
        python: the interpreter whose worker serves.
        patience: seconds after which a request counts as held up.
    """

    where: Where
    broker: RabbitMQ
    url: str
    admin: str
    flow_id: str
    folder: Path
    deployments: Mapping[str, str] = field(default_factory=dict)
    python: str = sys.executable
    patience: float = PATIENCE


def plain(**fields: Any) -> Callable[[int, Scene], dict[str, Any]]:
    """A request for a run of the flow. ``#`` in a text is replaced by the request's number modulo
    :data:`SEEDS`.
    """

    def body(number: int, scene: Scene) -> dict[str, Any]:
        numbered = {
            name: value.replace("#", f"{number % SEEDS}") if isinstance(value, str) else value
            for name, value in fields.items()
        }
        return {"flow_id": scene.flow_id, **numbered}

    return body


def _deep(levels: int) -> Callable[[int, Scene], bytes]:
    def body(_: int, scene: Scene) -> bytes:
        head = b'{"flow_id": "%s", "parameters": {"a": ' % scene.flow_id.encode()
        return head + b"[" * levels + b"]" * levels + b"}}"

    return body


def _wrong_labels(_: int, scene: Scene) -> bytes:
    labels = b", ".join(b'"k%d": []' % number for number in range(70_000))
    return b'{"flow_id": "%s", "labels": {%s}}' % (scene.flow_id.encode(), labels)


def _of_deployment(
    name: str, what: str, parameters: Mapping[str, Any], *statuses: int, costly: bool = False, many: int = 10
) -> Bad:
    """A request for a run of the deployment of this name, with a unique parameter; ``#`` in the
    name is replaced by a number.
    """

    def body(number: int, scene: Scene) -> bytes:
        id_ = scene.deployments[name.replace("#", f"{number % LARGE_DEPLOYMENTS}")]
        request = {
            "deployment_id": id_,
            "parameters": {**parameters, "number": number},
            "enforce_parameter_schema": name in CHECKS,
            "job_variables": {"number": number} if name == "template" else {},
        }
        return json.dumps(request, separators=(",", ":")).encode()

    of_type = {"type": FROM_DEPLOYMENT}
    return Bad(
        what,
        body,
        frozenset(statuses),
        lambda _: of_type,
        ("prefect",),
        many=3 if costly else many,
        costly=costly,
    )


def _kind(name: str, **fields: Any) -> dict[str, Any]:
    return {"__prefect_kind": name, **fields}


def _of_deployments() -> Iterator[Bad]:
    """Hostile requests for deployments, and requests for hostile deployments."""
    for written in ("a\\u0000b", "a\\ud800b"):
        name = _kind("json", value=f'"{written}"')
        variable = {"a": _kind("workspace_variable", variable_name=name)}
        yield _of_deployment("plain", f"{written} in a variable's name, out of JSON", variable, 400, 404, 422)
    variable = {"a": _kind("workspace_variable", variable_name="a\0b")}
    yield _of_deployment("plain", "NUL in a variable's name", variable, 400, 404, 409, 422)
    yield _of_deployment("large-#", "a deployment with large parameters", {}, 201, 422)
    small = {"a": _kind("none", value=1), "b": [[]] * 100_000}
    yield _of_deployment("plain", "a hydrated value beside 100,000 lists", small, 201)
    amplified = {"a": [_kind("workspace_variable", variable_name="v")] * 8500}
    yield _of_deployment("plain", "variables that amplify 500 kB to 40 MB", amplified, 422)
    # The most loops that Prefect allows, over larger data than it expects.
    loop = "{% for a in range(100) | list * 9999 %}"
    endless = {"a": _kind("jinja", template=2 * loop + 2 * "{% endfor %}")}
    yield _of_deployment("plain", "a template that never ends", endless, 400, costly=True)
    yield _of_deployment("template", "a default against a pattern without end", {}, 422, costly=True)
    for name, check in CHECKS.items():
        yield _of_deployment(name, name, check.parameters, check.status, costly=True)


def _reply_name(tag: bytes, length: str, behind: int, node: str) -> Callable[[int], dict[str, Any]]:
    """A direct reply-to name in one of the forms of Erlang's external terms."""

    def properties(number: int) -> dict[str, Any]:
        name = node.replace("#", f"{number}").encode()
        term = tag + struct.pack(length, len(name)) + name + bytes(behind)
        encoded = base64.b64encode(term).decode()
        return {"reply_to": f"amq.rabbitmq.reply-to.{encoded}.aSiJZEuFGqmRJ4JUR3dDOQ=="}

    return properties


def kinds(broker: RabbitMQ) -> list[Bad]:
    """All of them."""
    refused, stored = frozenset({409, 422}), frozenset({201})
    return [
        *(
            Bad(f"a trigger raises {code}", plain(name=f"raises {code} #"), refused, where=ON_POSTGRESQL)
            for code in RAISED
        ),
        Bad("row-level security refuses it", plain(name="policy #"), refused, where=ON_POSTGRESQL),
        Bad("a trigger aborts", plain(name="aborts #"), refused, where=("sqlite",)),
        Bad("a trigger swallows it", plain(name="swallowed #"), refused),
        Bad("a trigger swallows it, with a key", plain(name="swallowed #", idempotency_key="sw-#"), refused),
        # The first of them is stored.
        Bad("an extra unique index on the name", plain(name="only once"), refused | stored),
        Bad("a partial unique index on the tags", plain(tags=["only once"]), refused | stored),
        Bad("a key in other letters", plain(idempotency_key="CASE-#"), refused),
        Bad(
            "a run that has no time",
            plain(idempotency_key="infinite"),
            frozenset({200, 422}),
            where=ON_POSTGRESQL,
        ),
        Bad("a label of NaN", plain(labels={"a": float("nan")}), frozenset({422})),
        Bad("NUL in the name", plain(name="a\0b"), frozenset({422})),
        Bad("NUL beside 200,000 lists", plain(name="a\0b", context={"a": [[]] * 200_000}), frozenset({422})),
        Bad("600 levels", _deep(600), frozenset({400})),
        Bad("300 levels, of which Prefect can't read so many", _deep(300), frozenset({201, 422})),
        Bad("120 tags", plain(tags=[f"tag-{number}" for number in range(120)]), frozenset({201, 422})),
        Bad("a refusal of 900 kB", plain(no_such_field="x" * 900_000), frozenset({422})),
        Bad(
            "70,000 wrong labels",
            _wrong_labels,
            frozenset({422}),
            many=24,
        ),
        Bad(
            "made-up direct reply name, its node unknown",
            plain(name="made up"),
            stored,
            _reply_name(b"\x83Xv", ">H", 12, "rabbit@made-up-#"),
            replied=False,
        ),
        Bad(
            "made-up direct reply name in the old form, its node known",
            plain(name="made up"),
            stored,
            _reply_name(b"\x83gd", ">H", 9, broker.name),
            replied=False,
        ),
        Bad(
            "made-up direct reply name, its node known",
            plain(name="made up"),
            stored,
            _reply_name(b"\x83Xw", ">B", 12, broker.name),
            replied=False,
        ),
        Bad(
            "user_id in a refused request",
            plain(no_such_field=1),
            frozenset({422}),
            lambda _: {"user_id": "guest"},
        ),
        Bad(
            "a left-over x-delivery-count",
            plain(name="left over"),
            stored,
            lambda number: {"headers": {"x-delivery-count": 1 + number % 19}},
        ),
        *_of_deployments(),
    ]


# Changes that a user may have made to the tables; each matches a name, a tag or a key of a run.
_ON_POSTGRESQL = (
    """
    CREATE FUNCTION among_good() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.name LIKE 'raises %' THEN
            RAISE EXCEPTION 'no run of this name' USING ERRCODE = split_part(NEW.name, ' ', 2);
        END IF;
        IF NEW.name LIKE 'swallowed %' THEN RETURN NULL; END IF;
        RETURN NEW;
    END $$""",
    "CREATE TRIGGER among_good BEFORE INSERT ON flow_run FOR EACH ROW EXECUTE FUNCTION among_good()",
    "ALTER TABLE flow_run ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY all_see ON flow_run FOR SELECT USING (true)",
    "CREATE POLICY few_write ON flow_run FOR INSERT WITH CHECK (name NOT LIKE 'policy %')",
    "CREATE POLICY all_change ON flow_run FOR UPDATE USING (true)",
    "CREATE UNIQUE INDEX once_by_name ON flow_run (name) WHERE name = 'only once'",
    "CREATE UNIQUE INDEX once_by_tag ON flow_run ((tags ->> 0)) WHERE tags ->> 0 = 'only once'",
    "CREATE UNIQUE INDEX any_case ON flow_run (lower(idempotency_key))"
    " WHERE lower(idempotency_key) LIKE 'case-%'",
    "UPDATE flow_run SET expected_start_time = 'infinity' WHERE idempotency_key = 'infinite'",
)
_ON_SQLITE = (
    "CREATE TRIGGER aborts BEFORE INSERT ON flow_run WHEN NEW.name LIKE 'aborts %' "
    "BEGIN SELECT RAISE(ABORT, 'no run of this name'); END",
    "CREATE TRIGGER swallows BEFORE INSERT ON flow_run WHEN NEW.name LIKE 'swallowed %' "
    "BEGIN SELECT RAISE(IGNORE); END",
    "CREATE UNIQUE INDEX once_by_name ON flow_run (name) WHERE name = 'only once'",
    "CREATE UNIQUE INDEX once_by_tag ON flow_run (tags) WHERE tags LIKE '[\"only once\"]'",
    "CREATE UNIQUE INDEX any_case ON flow_run (idempotency_key COLLATE NOCASE)",
)
_KEYS = ("infinite", *(f"case-{number}" for number in range(SEEDS)))


@asynccontextmanager
async def open_scene(
    where: Where, broker: RabbitMQ, cluster: PostgreSQL, folder: Path, **how: Any
) -> AsyncIterator[Scene]:
    """A database with a user's changes to its tables, and a role that has only the worker's rights.

    Args:
        how: ``python`` and ``patience`` of the scene.
    """
    folder.mkdir(exist_ok=True)
    flow_id, deployments = str(uuid4()), dict[str, str]()
    if where == "sqlite":
        admin = url = f"sqlite+aiosqlite:///{folder}/flow_runs.db"
        await migrations.upgrade(admin)
    else:
        admin = await asyncio.to_thread(cluster.create_database)
        rights = "GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO flow_runs_worker"
        if where == "prefect":
            flow_id, deployments = await asyncio.to_thread(_prefect_objects, PrefectServer(admin))
            # Prefect's API would run this endless check itself.
            template = (
                f"UPDATE work_pool SET base_job_template = '{json.dumps(TEMPLATE)}' WHERE name = 'harmful'"
            )
            await execute(admin, template)
            rights = "GRANT SELECT ON ALL TABLES IN SCHEMA public TO flow_runs_worker;"
            rights += (ROOT / "deploy/postgresql/prefect-rights.sql").read_text()
        else:
            await migrations.upgrade(admin)
        role = "CREATE ROLE flow_runs_worker LOGIN"
        await execute(admin, f"DO $$ BEGIN {role}; EXCEPTION WHEN duplicate_object THEN NULL; END $$", rights)
        url = make_url(admin).set(username="flow_runs_worker").render_as_string(hide_password=False)
    scene = Scene(where, broker, url, admin, flow_id, folder, deployments, **how)
    # Create the existing runs before the tables change.
    async with serving(scene, 1) as served:
        replies = await served.producer.replies_to(
            [await served.producer.publish({"flow_id": flow_id, "idempotency_key": key}) for key in _KEYS]
        )
        assert {reply.status for reply in replies} == {201}
    if where == "sqlite":
        await asyncio.to_thread(_execute_on_sqlite, folder / "flow_runs.db")
    else:
        await execute(admin, *_ON_POSTGRESQL)
    yield scene


def _execute_on_sqlite(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in _ON_SQLITE:
            connection.execute(statement)


def _prefect_objects(server: PrefectServer) -> tuple[str, dict[str, str]]:
    """A flow, and its deployments by name: some with parameters of 476 KiB, some hostile."""
    with server, httpx.Client(base_url=server.api, timeout=120) as http:

        def post(path: str, body: dict[str, Any]) -> str:
            response = http.post(path, json=body)
            response.raise_for_status()
            return str(response.json()["id"])

        def deployment(name: str, pool: str = "pool", **fields: Any) -> str:
            return post("/deployments/", {"name": name, "flow_id": flow_id, "work_pool_name": pool, **fields})

        flow_id = post("/flows/", {"name": "among good"})
        for pool in ("pool", "harmful"):
            post("/work_pools/", {"name": pool, "type": "process"})
        post("/variables/", {"name": "v", "value": "v" * 4900})
        large = {"text": "x" * 476 * 1024}
        return flow_id, {
            "plain": deployment("plain"),
            "template": deployment("template", "harmful"),
            **{
                name: deployment(name, parameters=large)
                for name in (f"large-{number}" for number in range(LARGE_DEPLOYMENTS))
            },
            **{name: deployment(name, parameter_openapi_schema=each.schema) for name, each in CHECKS.items()},
        }


# A request: its kind (None for a good one), correlation id, body and further properties.
Sent = tuple[Bad | None, str, dict[str, Any] | bytes, dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """The outcome of good requests with bad ones among them.

    Attributes:
        seconds: until the last good one was answered.
        late: the longest pause of a worker's event loop in seconds.
        busy: the most CPU seconds that one took meanwhile.
        peak: memory of a worker and its check process together, in bytes.
        wrong: missing and wrong answers.
    """

    seconds: float
    late: float
    busy: float
    peak: int
    wrong: tuple[str, ...]

    def __str__(self) -> str:
        held = f"{self.late * 1000:.0f} ms (CPU {self.busy * 1000:.0f})"
        return f"{self.seconds:.2f} s, loop held {held}, {self.peak / MIB:.0f} MiB"


@dataclass(frozen=True)
class Stopped:
    """The outcome of SIGTERM.

    Attributes:
        seconds: until the last worker had ended.
        codes: their exit codes.
        left: unanswered requests, all of them in the queue.
    """

    seconds: float
    codes: list[int]
    left: int


def _peak(pid: int) -> int:
    """The peak memory of a worker and its check process in bytes; 0 once they have ended."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        status = [Path(f"/proc/{each}/status").read_text() for each in (pid, *children)]
        return 1024 * sum(int(found) for each in status for found in re.findall(r"VmHWM:\s+(\d+)", each))
    return 0


def _forget_peak(pid: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


class Served:
    """Workers on a scene's database, and a producer at their queue."""

    def __init__(
        self,
        scene: Scene,
        producer: Producer,
        workers: Sequence[WorkerProcess],
        heartbeats: Sequence[Heartbeat],
    ) -> None:
        self.scene = scene
        self.producer = producer
        self.workers = workers
        self.heartbeats = heartbeats
        self.refused = 0
        self.peak = 0
        self._number = 0

    async def serve(self, kinds: Sequence[Bad], count: int, good: int = GOOD) -> Measured:
        """Send good requests with ``count`` of each of these kinds among them, and wait until each
        is answered.
        """
        sent = self._requests(kinds, count, good)
        unreplied_before = await self._made_up()
        for worker, heartbeat in zip(self.workers, self.heartbeats, strict=True):
            _forget_peak(worker.process.pid)
            heartbeat.reset()
        self.peak = 0
        started = time.monotonic()
        await self._publish(sent)
        good_ids = [id_ for kind, id_, *_ in sent if kind is None]
        wrong = [f"{missing} good ones unanswered" for missing in await self._missing(good_ids) if missing]
        seconds = time.monotonic() - started
        bad_ids = [id_ for kind, id_, *_ in sent if kind is not None and kind.replied]
        await self._missing(bad_ids)
        late = max(each.lateness() for each in self.heartbeats)
        busy = max(each.busy() for each in self.heartbeats)
        for kind, id_, *_ in sent:
            statuses = [reply.status for reply in self.producer.replies[id_]]
            if kind is None:
                if statuses not in ([201], []):
                    wrong.append(f"a good one: {statuses}")
            elif kind.replied:
                self.refused += bool(statuses and statuses[0] >= 400)
                if len(statuses) != 1 or statuses[0] not in kind.statuses:
                    wrong.append(f"{kind.name}: {statuses}")
        unreplied = sum(kind is not None and not kind.replied for kind, *_ in sent)
        async with asyncio.timeout(self.scene.patience):
            while unreplied and await self._made_up() - unreplied_before < unreplied:
                await asyncio.sleep(0.1)
        wrong += [f"worker {number} ended" for number, each in enumerate(self.workers) if each.process.poll()]
        told = tuple(f"{count} x {what}" for what, count in Counter(wrong).items())
        return Measured(seconds, late, busy, self.peak, told)

    async def stop_amid(self, kind: Bad) -> Stopped:
        """End the workers during requests of this kind, among 200 good ones."""
        sent = self._requests([kind], kind.many, 200)
        await self._publish(sent)
        while not any(self.producer.replies[id_] for _, id_, *_ in sent):
            await asyncio.sleep(0.01)
        started = time.monotonic()
        for worker in self.workers:
            worker.process.terminate()
        async with asyncio.timeout(self.scene.patience):
            codes = [await asyncio.to_thread(worker.process.wait) for worker in self.workers]
        seconds = time.monotonic() - started
        async with asyncio.timeout(self.scene.patience):
            while True:
                unanswered = sum(not self.producer.replies[id_] for _, id_, *_ in sent)
                if await self.producer.depth() == unanswered:
                    return Stopped(seconds, codes, unanswered)
                await asyncio.sleep(0.1)

    def _requests(self, kinds: Sequence[Bad], count: int, good: int) -> list[Sent]:
        """Good ones with ``count`` of each of these kinds mixed in evenly."""
        sent: list[Sent] = [(None, uuid4().hex, {"flow_id": self.scene.flow_id}, {}) for _ in range(good)]
        bad = [kind for _ in range(count) for kind in kinds]
        for place, kind in enumerate(bad):
            self._number += 1
            body, properties = kind.body(self._number, self.scene), kind.properties(self._number)
            sent.insert((place + 1) * len(sent) // (len(bad) + 1), (kind, uuid4().hex, body, properties))
        return sent

    async def _publish(self, sent: Sequence[Sent]) -> None:
        for start in range(0, len(sent), 200):
            await asyncio.gather(
                *(
                    self.producer.publish(body, correlation_id=id_, **properties)
                    for _, id_, body, properties in sent[start : start + 200]
                )
            )

    async def _missing(self, ids: Sequence[str]) -> list[int]:
        """The number of these that have no reply after ample time."""
        until = time.monotonic() + self.scene.patience
        while missing := sum(not self.producer.replies[each] for each in ids):
            self.peak = max(self.peak, *(_peak(worker.process.pid) for worker in self.workers))
            if time.monotonic() > until:
                break
            await asyncio.sleep(0.01)
        return [missing]

    async def _made_up(self) -> int:
        (row,) = await fetch(self.scene.admin, "SELECT count(*) AS n FROM flow_run WHERE name = 'made up'")
        return int(row["n"])

    async def end(self) -> list[str]:
        """End the workers; returns everything that is wrong by then."""
        wrong = []
        letters = await self.producer.depth(f"{self.producer.queue}.dead")
        if letters != self.refused:
            wrong.append(f"{letters} dead letters of {self.refused} refused ones")
        for worker in self.workers:
            if status := (await asyncio.to_thread(worker.readiness))[0] != 200:
                wrong.append(f"/readyz {status}")
            if code := await asyncio.to_thread(worker.terminate):
                wrong.append(f"exit code {code}")
            if "Traceback" in worker.output:
                wrong.append(f"a traceback in {worker.log}")
        if left := await self.producer.depth():
            wrong.append(f"{left} left in the queue")
        return wrong


@asynccontextmanager
async def serving(scene: Scene, count: int, **settings: str) -> AsyncIterator[Served]:
    """``count`` workers with a heartbeat and these environment variables, and a producer."""
    queue = f"among-good-{uuid4().hex[:8]}.create"
    user = f"workers-{uuid4().hex[:8]}"
    await asyncio.to_thread(scene.broker.ctl, "add_user", user, user)
    await asyncio.to_thread(scene.broker.ctl, "set_permissions", user, ".*", ".*", ".*")
    environment = {
        "WORKER_AMQP_URL": f"amqp://{user}:{user}@127.0.0.1:{scene.broker.port}/",
        "WORKER_DATABASE_URL": scene.url,
        "WORKER_DATABASE_KIND": "prefect" if scene.where == "prefect" else "standalone",
        "WORKER_QUEUE": queue,
        "WORKER_HTTP_PORT": "0",
        "PYTHONPATH": "",  # the interpreter has its own worker
        **settings,
    }
    workers: list[WorkerProcess] = []
    heartbeats: list[Heartbeat] = []
    try:
        for number in range(count):
            file = scene.folder / f"{user}-{number}"
            heartbeats.append(Heartbeat(file))
            command = [scene.python, "-P", beating_worker.__file__, str(file)]
            workers.append(WorkerProcess(file.with_suffix(".log"), environment, command))
        for worker in workers:
            await asyncio.to_thread(worker.wait_until_logged, "serving")
        async with Producer(scene.broker.url, queue) as producer:
            yield Served(scene, producer, workers, heartbeats)
    finally:
        for worker in workers:
            worker.kill()


async def measure(scene: Scene, kind: Bad, workers: int, *, stop: bool) -> bool:
    """Serve one and many of a kind with its own workers; returns whether all was right."""
    async with serving(scene, workers) as served:
        await served.serve((), 0)  # warm connections, statements and code
        before = await served.serve((), 0)
        wrong: list[str] = []
        for count in (1, kind.many):
            measured = await served.serve([kind], count)
            console.print(f"  {count:2} x [bold]{kind.name}[/]: {measured}")
            wrong += measured.wrong
            if any("unanswered" in each for each in measured.wrong):
                break
            after = await served.serve((), 0)
            ratio = 2 * measured.seconds / (before.seconds + after.seconds)
            console.print(f"       ratio {ratio:.2f}; without: {before}; {after}")
            before = after
        if stop and kind.replied:
            try:
                stopped = await served.stop_amid(kind)
                console.print(
                    f"       SIGTERM: ended after {stopped.seconds:.1f} s with {stopped.codes}, "
                    f"{stopped.left} left in the queue"
                )
            except TimeoutError:
                wrong.append(f"SIGTERM: not ended, or something is lost, after {scene.patience:.0f} s")
        else:
            wrong += await served.end()
        for each in wrong:
            console.print(f"     [red]{each}")
    return not wrong


async def main(given: argparse.Namespace) -> int:
    """Measure; returns the exit code."""
    right = True
    with RabbitMQ() as broker, PostgreSQL() as cluster:
        for where in given.database or EVERYWHERE:
            chosen = [
                kind
                for kind in kinds(broker)
                if where in kind.where and any(each in kind.name for each in given.kind or [""])
            ]
            with tempfile.TemporaryDirectory() as folder:
                how = {"python": given.python, "patience": given.patience}
                async with open_scene(where, broker, cluster, Path(folder), **how) as scene:
                    for workers in given.workers or (1, 3):
                        console.print(f"[bold]{where}, {workers} workers[/]: {GOOD:,} good ones")
                        for kind in chosen:
                            right = await measure(scene, kind, workers, stop=given.stop) and right
    return 0 if right else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=EVERYWHERE, action="append")
    parser.add_argument("--workers", type=int, action="append")
    parser.add_argument("--kind", action="append", help="kinds whose name contains this text")
    parser.add_argument("--stop", action="store_true", help="send SIGTERM amid requests of each kind")
    parser.add_argument("--python", default=sys.executable, help="the interpreter whose worker serves")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds for a request")
    sys.exit(asyncio.run(main(parser.parse_args())))
