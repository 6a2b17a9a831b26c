"""A worker that writes into a Prefect server's own database: Prefect serves, finds and executes the
runs in its replies.
"""

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.conformance.cases import CASES
from tests.conformance.comparison import comparable, differences
from tests.conformance.prefect_server import VERSION
from tests.conformance.shared import PROCESS_TEMPLATE, Both, Shared, assert_served, start_process_worker
from tests.support.command import command
from tests.support.requests import request
from worker.contract.errors import Fault, WorkPoolNotFound
from worker.store import Created, Store, StoreError, Undecided, migrations


@pytest.fixture
async def both(shared: Shared, amqp_url: str) -> AsyncIterator[Both]:
    async with Both.at(shared, amqp_url) as both:
        yield both


async def test_prefect_answers_the_same_and_serves_what_the_reply_said(both: Both) -> None:
    labels = {"team": "blue", "tier": 1}
    our_flow, their_flow = await both.new_flow(labels=labels), await both.new_flow(labels=labels)
    wrong: list[str] = []
    for case in CASES:
        try:
            reply = await both.assert_equal(
                case.body(our_flow), case.body(their_flow), same={our_flow: their_flow}, headers=case.headers
            )
            if reply.status < 300:
                assert_served(reply, await both.served(reply.body["id"]))
        except AssertionError as error:
            wrong.append(f"{case.name}: {error}")
    assert not wrong, f"{len(wrong)} of {len(CASES)} cases differ\n\n" + "\n\n".join(wrong)


async def test_work_pool_and_queue_are_found_by_name(both: Both) -> None:
    flow, pool, queue = await both.new_flow(), f"pool-{uuid4()}", f"queue-{uuid4()}"
    await both.post("/work_pools/", {"name": pool, "type": "process"})
    await both.post(f"/work_pools/{pool}/queues", {"name": queue})
    for fields in (
        {"work_pool_name": pool},
        {"work_pool_name": pool, "work_queue_name": queue},
        {"work_pool_name": pool, "work_queue_name": "missing"},
        {"work_pool_name": "missing"},
        {"work_pool_name": "missing", "work_queue_name": queue},
        {"work_queue_name": queue},
        {"work_pool_name": "", "work_queue_name": ""},
    ):
        for keyed in (False, True):
            ours, theirs = (
                {"idempotency_key": f"{side}-{fields}"} if keyed else {} for side in ("ours", "theirs")
            )
            reply = await both.assert_equal(
                json.dumps({"flow_id": flow, **fields, **ours}).encode(),
                json.dumps({"flow_id": flow, **fields, **theirs}).encode(),
                same={"ours-": "theirs-"},
            )
            if reply.status == 201:
                assert_served(reply, await both.served(reply.body["id"]))


async def test_a_queue_that_is_deleted_behind_the_look_up_is_looked_up_once_more(
    both: Both, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, pool, queue = await both.new_flow(), f"pool-{uuid4()}", f"queue-{uuid4()}"
    await both.post("/work_pools/", {"name": pool, "type": "process"})
    await both.post(f"/work_pools/{pool}/queues", {"name": queue})
    store = await Store.open(shared.database_url, migrate=False)
    resolve = store._complete

    async def resolve_too_early(runs: Any) -> Any:
        references = await resolve(runs)
        deleted = await both.prefect("DELETE", f"/work_pools/{pool}/queues/{queue}")
        assert deleted.is_success
        monkeypatch.undo()
        return references

    monkeypatch.setattr(store, "_complete", resolve_too_early)
    of_queue = request(flow_id=flow, work_pool_name=pool, work_queue_name=queue)
    batch = [request(flow_id=flow), of_queue, request(flow_id=flow)]
    first, undecided, last = await store.create(batch)
    assert isinstance(first, Created)
    assert isinstance(last, Created)
    assert isinstance(undecided, Undecided)
    assert undecided.blamed
    (refused,) = await store.create([of_queue])
    assert isinstance(refused, WorkPoolNotFound)
    await store.close()


async def test_rows_that_are_missing_are_conflicts_of_that_request_alone(both: Both) -> None:
    flow = await both.new_flow()
    for name, what in (
        ("flow_id", "flow"),
        ("parent_task_run_id", "parent task run"),
        ("infrastructure_document_id", "infrastructure document"),
    ):
        missing = str(uuid4())
        refused = await both.assert_equal(json.dumps({"flow_id": flow, name: missing}).encode())
        assert refused.headers["x-error"] == f"There is no {what} {missing}."
    bodies = [
        {"flow_id": str(uuid4()) if number % 3 == 0 else flow, "idempotency_key": f"{number}"}
        for number in range(120)
    ]
    sent = [await both.producer.publish(body) for body in bodies]
    statuses = [reply.status for reply in await both.producer.replies_to(sent)]
    assert statuses == [409 if number % 3 == 0 else 201 for number in range(120)]


async def test_labels_come_from_the_deployment(both: Both) -> None:
    flow = await both.new_flow(labels={"of": "flow"})
    deployment = await both.post(
        "/deployments/", {"name": "d", "flow_id": flow, "labels": {"of": "deployment", "tier": 1}}
    )
    for deployment_id in (deployment["id"], str(uuid4())):
        body = {"flow_id": flow, "deployment_id": deployment_id, "labels": {"tier": 2}}
        reply = await both.assert_equal(json.dumps(body).encode())
        assert_served(reply, await both.served(reply.body["id"]))


@pytest.mark.parametrize("before", [None, "PENDING", "RUNNING", "COMPLETED", "SCHEDULED"])
async def test_the_parent_task_run_follows_its_subflow(both: Both, before: str | None) -> None:
    flow = await both.new_flow()
    parent_run = (await both.post("/flow_runs/", {"flow_id": flow}))["id"]
    for state in ("SCHEDULED", "PENDING", "RUNNING", "COMPLETED"):
        ours, theirs = [
            (
                await both.post(
                    "/task_runs/",
                    {
                        "flow_run_id": parent_run,
                        "task_key": "t",
                        "dynamic_key": uuid4().hex,
                        "name": "t",
                        **({"state": {"type": before}} if before else {}),
                    },
                )
            )["id"]
            for _ in range(2)
        ]
        body = {"flow_id": flow, "state": {"type": state, "message": "m"}}
        reply = await both.assert_equal(
            json.dumps({**body, "parent_task_run_id": ours}).encode(),
            json.dumps({**body, "parent_task_run_id": theirs}).encode(),
            same={ours: theirs},
        )
        assert_served(reply, await both.served(reply.body["id"]))
        now = datetime.now(UTC)
        our_task, their_task = [
            (await both.prefect("GET", f"/task_runs/{each}")).json() for each in (ours, theirs)
        ]
        assert our_task["state"]["state_details"]["child_flow_run_id"] == reply.body["id"]
        assert our_task["state"]["state_details"]["task_run_id"] == ours
        for task in (our_task, their_task):
            for name in ("child_flow_run_id", "task_run_id"):
                del task["state"]["state_details"][name]
            for name in ("dynamic_key", "id", "state_id", "total_run_time"):
                del task[name]
            del task["state"]["id"]
        assert list(differences(_without_times(their_task, now), _without_times(our_task, now))) == []


def _without_times(task: dict[str, Any], now: datetime) -> Any:
    return comparable({name: value for name, value in task.items() if not name.startswith("estimated_")}, now)


async def test_a_duplicate_shows_the_run_as_prefect_has_moved_it_on(both: Both) -> None:
    body = {"flow_id": await both.new_flow(), "idempotency_key": "k", "state": {"type": "SCHEDULED"}}
    created = await both.producer.request(body)
    for state in ("RUNNING", "COMPLETED"):
        await both.post(
            f"/flow_runs/{created.body['id']}/set_state", {"state": {"type": state}, "force": True}
        )
        again = await both.producer.request(body)
        assert (again.status, again.body["id"], again.body["state"]["type"]) == (
            200,
            created.body["id"],
            state,
        )
        assert_served(again, await both.served(created.body["id"]))
    assert again.body["run_count"] == 1
    assert again.body["end_time"] is not None


async def test_prefect_and_a_worker_that_race_for_a_key_make_one_run(both: Both) -> None:
    flow = await both.new_flow()
    bodies = [{"flow_id": flow, "idempotency_key": f"{number}"} for number in range(50)]
    sent = [await both.producer.publish(body) for body in bodies]
    theirs = await asyncio.gather(*(both.prefect("POST", "/flow_runs/", json=body) for body in bodies))
    ours = await both.producer.replies_to(sent)
    for response, reply in zip(theirs, ours, strict=True):
        assert sorted((response.status_code, reply.status)) == [200, 201]
        assert response.json()["id"] == reply.body["id"]
    assert await both.post("/flow_runs/count", {"flows": {"id": {"any_": [flow]}}}) == 50


async def test_prefects_own_queries_find_it(both: Both) -> None:
    flow = await both.new_flow()
    replies = [
        await both.producer.request({"flow_id": flow, "tags": ["a", "b"], "state": {"type": "SCHEDULED"}})
        for _ in range(3)
    ]
    wanted = {
        "flows": {"id": {"any_": [flow]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "tags": {"all_": ["a", "b"]}},
    }
    assert await both.post("/flow_runs/count", wanted) == 3
    found = {run["id"]: run for run in await both.post("/flow_runs/filter", wanted)}
    for reply in replies:
        assert_served(reply, found[reply.body["id"]])
    now = datetime.now(UTC)
    history = await both.post(
        "/flow_runs/history",
        {
            "history_start": f"{now.date()}T00:00:00Z",
            "history_end": f"{now.date()}T23:59:59.999Z",
            "history_interval_seconds": 86_400,
            "flows": {"id": {"any_": [flow]}},
        },
    )
    assert sum(state["count_runs"] for interval in history for state in interval["states"]) == 3


# A copy of the file is enough to test the checks of a database.
on_a_file = pytest.mark.parametrize("shared", ["sqlite"], indirect=True, scope="package")


@pytest.fixture
def prefect_file(shared: Shared, tmp_path: Path) -> Path:
    """A copy of Prefect's database, on SQLite."""
    with (
        closing(sqlite3.connect(shared.database_url.partition(":///")[2], timeout=60)) as source,
        closing(sqlite3.connect(tmp_path / "copy.db")) as copy,
    ):
        source.backup(copy)
    return tmp_path / "copy.db"


@on_a_file
async def test_it_is_recognised_and_never_altered(prefect_file: Path) -> None:
    before = _schema(prefect_file)
    store = await Store.open(f"sqlite:///{prefect_file}", migrate=True)
    assert store.kind == "prefect"
    await store.close()
    assert "a Prefect server's database, at its migration" in await migrations.current(
        f"sqlite:///{prefect_file}"
    )
    await migrations.upgrade(f"sqlite:///{prefect_file}")
    assert _schema(prefect_file) == before


async def test_doctor_names_its_kind_and_its_version(both: Both, shared: Shared, amqp_url: str) -> None:
    done = await command(
        "doctor", amqp_url=amqp_url, queue=both.producer.queue, database_url=shared.database_url
    )
    assert done.code == 0, done.out
    assert re.search(
        rf"ok .*schema.*a Prefect server's, at its migration [0-9a-f]{{12}} \(Prefect {re.escape(VERSION)}\); "
        "has all that the worker writes to",
        done.out,
    )


@on_a_file
async def test_doctor_names_a_prefect_that_no_test_has_seen(prefect_file: Path, amqp_url: str) -> None:
    with closing(sqlite3.connect(prefect_file)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
        connection.commit()
    done = await command("doctor", "--json", amqp_url=amqp_url, database_url=f"sqlite:///{prefect_file}")
    (schema,) = [each for each in json.loads(done.out) if each["what"] == "schema"]
    assert schema["verdict"] == "warning"
    assert "0123456789ab, which is of no Prefect that the worker was tested with" in schema["detail"]
    assert f"Prefect {VERSION}" in schema["advice"]


@on_a_file
async def test_it_is_refused_where_one_of_the_workers_own_is_demanded(
    prefect_file: Path, amqp_url: str
) -> None:
    before, url = _schema(prefect_file), f"sqlite:///{prefect_file}"
    with pytest.raises(StoreError, match="WORKER_DATABASE_KIND demands one of the worker's own"):
        await Store.open(url, migrate=True, kind="standalone")
    done = await command("doctor", amqp_url=amqp_url, database_url=url, database_kind="standalone")
    assert done.code == 1
    assert "WORKER_DATABASE_KIND demands one of the worker's own" in done.out
    assert _schema(prefect_file) == before


@on_a_file
async def test_it_is_waited_for_while_it_is_being_made(prefect_file: Path) -> None:
    """With the kind set, a missing table or column may come with the server's next migration."""
    with closing(sqlite3.connect(prefect_file)) as connection:
        connection.execute("ALTER TABLE flow_run_state RENAME COLUMN state_details TO details")
        connection.commit()
    with pytest.raises(Fault, match=r"no column flow_run_state\.state_details"):
        await Store.open(f"sqlite:///{prefect_file}", migrate=True, kind="prefect")
    with closing(sqlite3.connect(prefect_file)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("ALTER TABLE work_pool RENAME TO pool_of_work")
        connection.commit()
    with pytest.raises(Fault, match="Prefect has not made its tables"):
        await Store.open(f"sqlite:///{prefect_file}", migrate=True, kind="prefect")


@on_a_file
async def test_what_it_lacks_is_told(prefect_file: Path, amqp_url: str) -> None:
    with closing(sqlite3.connect(prefect_file)) as connection:
        connection.execute("ALTER TABLE flow_run_state RENAME COLUMN state_details TO details")
        connection.execute("DROP INDEX uq_flow_run__flow_id_idempotency_key")
        connection.commit()
    before = _schema(prefect_file)
    with pytest.raises(StoreError) as refused:
        await Store.open(f"sqlite:///{prefect_file}", migrate=True)
    assert "no column flow_run_state.state_details" in str(refused.value)
    assert "no unique index uq_flow_run__flow_id_idempotency_key" in str(refused.value)
    done = await command("doctor", amqp_url=amqp_url, database_url=f"sqlite:///{prefect_file}")
    assert done.code == 1
    assert "no column flow_run_state.state_details" in done.out
    assert _schema(prefect_file) == before


def _schema(file: Path) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        return list(connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name"))


FLOW = """
from prefect import flow

@flow
def hello(name: str = "nobody") -> str:
    print(f"hello {name}")
    return name
"""


@on_a_file
async def test_it_executes(both: Both, shared: Shared, tmp_path: Path) -> None:
    """On PostgreSQL, test_deployments.py executes a run that Node.js asked for."""
    (tmp_path / "flows.py").write_text(FLOW)
    pool = f"pool-{uuid4()}"
    await both.post("/work_pools/", {"name": pool, "type": "process", "base_job_template": PROCESS_TEMPLATE})
    flow = (await both.post("/flows/", {"name": "hello"}))["id"]
    deployment = await both.post(
        "/deployments/",
        {
            "name": pool,
            "flow_id": flow,
            "work_pool_name": pool,
            "path": str(tmp_path),
            "entrypoint": "flows.py:hello",
        },
    )
    worker = start_process_worker(shared.server, pool, tmp_path)
    try:
        body = {
            "flow_id": flow,
            "deployment_id": deployment["id"],
            "work_pool_name": pool,
            "parameters": {"name": "queue"},
            "idempotency_key": pool,
            "state": {"type": "SCHEDULED"},
        }
        created = await both.producer.request(body)
        assert created.status == 201
        await both.ended(created.body["id"])
        again = await both.producer.request(body)
        assert (again.status, again.body["state_type"], again.body["run_count"]) == (200, "COMPLETED", 1), (
            worker.log_tail()
        )
        assert_served(again, await both.served(created.body["id"]))
    finally:
        worker.stop()
