"""Requests that read a run, on a real broker and both databases."""

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.conftest import StartWorker
from tests.support.processes import wait_until
from tests.support.producer import Producer
from tests.support.requests import EVERY_FIELD, FLOW_ID, request
from worker.contract.errors import FlowRunNotFound
from worker.runs.creation import ReadRun
from worker.store import Created, Existing, Read, Store

READ = {"type": "read_flow_run"}
ESTIMATES = ("estimated_run_time", "estimated_start_time_delta")
# Of a new run these are answered as they were sent, and in UTC later.
TIMES = ("expected_start_time", "next_scheduled_start_time")


def steady(record: Any) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in (*ESTIMATES, *TIMES)}


async def test_a_run_is_read(start_worker: StartWorker, producer: Producer, database_url: str) -> None:
    worker = start_worker(database_url, states="final")
    created = await producer.request(EVERY_FIELD)
    assert created.status == 201
    existing = await producer.request(EVERY_FIELD)

    run_id = created.body["id"]
    read = await producer.request({"id": run_id}, correlation_id="c", **READ)
    assert (read.status, read.type, read.correlation_id) == (200, "flow_run", "c")
    assert steady(read.body) == steady(created.body) == steady(existing.body)
    assert [read.body[each] for each in TIMES] == [existing.body[each] for each in TIMES]
    written_otherwise = await producer.request({"id": UUID(run_id).hex.upper()}, **READ)
    assert written_otherwise.body["id"] == run_id

    await producer.publish({"id": run_id}, reply_to=None, **READ)
    read_after = await producer.request({"id": run_id}, message_id="m", **READ)
    assert read_after.status == 200
    wait_until(
        lambda: worker.metric("flow_run_worker_requests_total", outcome="read", status="200") == 4,
        "all counted",
    )
    assert worker.metric("flow_run_worker_requests_total", outcome="existing", status="200") == 1


async def test_a_refused_read_is_replied_and_makes_no_dead_letter(
    start_worker: StartWorker, producer: Producer, database_url: str
) -> None:
    worker = start_worker(database_url, states="all", max_body_bytes=1000)
    missing = str(uuid4())
    for body, properties, status, said in (
        ({"id": missing}, {}, 404, f"There is no flow run '{missing}'."),
        ({"id": missing, "more": 1}, {}, 422, "body.more: Extra inputs are not permitted"),
        ({"id": "x"}, {}, 422, "body.id: Input should be a valid UUID"),
        ({}, {}, 422, "body.id: Field required"),
        (b"{", {}, 422, "JSON decode error"),
        (b"[" * 999, {}, 400, "error parsing the body"),
        ({"id": missing}, {"content_encoding": "gzip"}, 415, "gzip"),
        ({"id": "x" * 1000}, {}, 413, "limit is 1,000 bytes"),
        ({"id": missing}, {"headers": {"x-prefect-api-version": "0.1.0"}}, 400, "requires version"),
    ):
        reply = await producer.request(body, **{**READ, **properties})
        assert (reply.status, reply.type) == (status, "error")
        assert said in reply.headers["x-error"]
    assert (await producer.request({"id": missing}, **READ)).body == {"detail": "Flow run not found"}
    # Replies are not sent to queues of workers, so there is no answer at all.
    await producer.publish({"id": missing}, reply_to=f"{producer.queue}.dead", **READ)
    await producer.publish({"id": missing}, reply_to=None, **READ)
    assert (await producer.request({"flow_id": FLOW_ID, "wrong": 1})).status == 422
    (letter,) = await producer.dead_letters(1)
    assert json.loads(letter.raw) == {"flow_id": FLOW_ID, "wrong": 1}
    assert await producer.depth() == await producer.depth(f"{producer.queue}.dead") == 0
    wait_until(
        lambda: (
            worker.metric("flow_run_worker_requests_total", outcome="read", status="404") == 3
            and worker.metric("flow_run_worker_requests_total", outcome="read", status="400") == 3
        ),
        "all counted",
    )
    assert worker.metric("flow_run_worker_requests_total", outcome="refused", status="422") == 1


async def test_without_states_no_run_is_read(
    start_worker: StartWorker, producer: Producer, sqlite_url: str
) -> None:
    start_worker(sqlite_url)
    created = await producer.request({"flow_id": FLOW_ID})
    reply = await producer.request({"id": created.body["id"]}, **READ)
    assert (reply.status, reply.headers["x-error"]) == (400, "states are not told here")
    assert await producer.depth(f"{producer.queue}.dead") == 0


async def test_reads_among_creates_are_each_answered(
    start_worker: StartWorker, producer: Producer, database_url: str
) -> None:
    start_worker(database_url, states="final")
    created = await producer.request({"flow_id": FLOW_ID, "name": "the first"})
    ids: list[str] = []
    for number in range(200):
        ids.append(await producer.publish({"flow_id": FLOW_ID, "name": f"run {number}"}))
        ids.append(await producer.publish({"id": created.body["id"]}, **READ))
    replies = await producer.replies_to(ids)
    assert [reply.status for reply in replies] == [201, 200] * 200
    assert {reply.body["name"] for reply in replies[1::2]} == {"the first"}


@pytest.fixture
async def store(database_url: str) -> Any:
    store = await Store.open(database_url, migrate=True)
    yield store
    await store.close()


async def test_a_read_sees_what_its_own_batch_committed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, and with one statement for the rows of all reads."""
    asked: list[object] = []
    query = store.query

    async def counted(statement: Any, wanted: Any) -> Any:
        if wanted:
            asked.append(statement)
        return await query(statement, wanted)

    monkeypatch.setattr(store, "query", counted)
    first, second, keyed = request(), request(), request(idempotency_key="k")
    missing = uuid4()
    reads = [ReadRun(each) for each in (first.run.id, keyed.run.id, missing, first.run.id)]
    outcomes = await store.create([reads[0], first, reads[1], second, reads[2], keyed, reads[3]])
    assert [type(each) for each in outcomes] == [Read, Created, Read, Created, FlowRunNotFound, Created, Read]
    read = [each.run for each in outcomes if isinstance(each, Read)]
    assert read == [first.run, keyed.run, first.run]
    assert asked == [store.statements.run_sizes[0], store.statements.runs[0]]
    asked.clear()
    assert isinstance((await store.create([ReadRun(first.run.id)]))[0], Read)
    assert asked == [store.statements.runs[0]]


async def test_a_run_that_cannot_be_shown_harms_no_other_read(store: Store) -> None:
    good, odd = request(), request()
    odd.run.tags = {"no": "list"}  # type: ignore[assignment]  # as another program may write it
    assert [type(each) for each in await store.create([good, odd])] == [Created, Created]
    read, refused = await store.create([ReadRun(good.run.id), ReadRun(odd.run.id)])
    assert isinstance(read, Read)
    assert "can't be shown: no valid value in tags" in str(refused)


async def test_large_runs_are_read_in_turns(store: Store) -> None:
    """Memory is bounded: what has no room in this batch is read with a later one."""
    large = [request(parameters={"text": "x" * 450_000}) for _ in range(10)]
    assert all(isinstance(each, Created) for each in await store.create(large))
    waiting = [ReadRun(each.run.id) for each in large]
    rounds = 0
    while waiting:
        outcomes = await store.create(waiting)
        read = [each.run.id for each in outcomes if isinstance(each, Read)]
        assert 1 <= len(read) <= 4
        waiting = [each for each in waiting if each.run_id not in read]
        rounds += 1
        await asyncio.sleep(0)
    assert rounds >= 3
    existing = await store.create([large[0]])
    assert isinstance(existing[0], Existing)
