"""A request goes in at the queue, and a record comes out at the reply queue, on a real broker and
both databases.
"""

import asyncio
import json
import random
import string
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.conftest import StartWorker
from tests.support.database import fetch_runs
from tests.support.producer import Producer
from tests.support.requests import EVERY_FIELD, FLOW_ID, same_as_sent
from worker.client import FlowRunClient


async def test_every_field_goes_round(
    start_worker: StartWorker, producer: Producer, database_url: str
) -> None:
    """As sent, in the reply, as stored, and in the reply to a duplicate, which is read back from
    the database.
    """
    start_worker(database_url)
    created = await producer.request(EVERY_FIELD, correlation_id="the-request")
    assert (created.status, created.type, created.correlation_id) == (201, "flow_run", "the-request")
    assert (created.app_id, created.content_type) == ("flow-run-worker", "application/json")
    assert created.message_id
    assert created.timestamp
    same_as_sent(created.body)

    existing = await producer.request(EVERY_FIELD)
    assert existing.status == 200
    same_as_sent(existing.body)
    moving = {
        "estimated_run_time",
        "estimated_start_time_delta",
        "expected_start_time",
        "next_scheduled_start_time",
    }
    assert {k: v for k, v in existing.body.items() if k not in moving} == {
        k: v for k, v in created.body.items() if k not in moving
    }

    (stored,) = await fetch_runs(database_url)
    for field in ("name", "flow_version", "idempotency_key", "work_queue_name"):
        assert stored[field] == EVERY_FIELD[field]
    for field in (
        "id",
        "flow_id",
        "state_id",
        "deployment_id",
        "parent_task_run_id",
        "infrastructure_document_id",
    ):
        assert str(UUID(str(stored[field]))) == created.body[field]
    for field in ("parameters", "context", "tags", "job_variables"):
        assert json.loads(stored[field]) == EVERY_FIELD[field]


async def test_many_producers_and_workers_make_each_run_once(
    start_worker: StartWorker, amqp_url: str, queue: str, database_url: str
) -> None:
    """4,000 requests over 400 keys, four producers at once, three workers on PostgreSQL and two on
    SQLite.
    """
    workers = [start_worker(database_url) for _ in range(3 if database_url.startswith("postgresql") else 2)]

    async def produce(number: int) -> list[Any]:
        async with Producer(amqp_url, queue) as producer:
            ids: list[str] = []
            for start in range(0, 1000, 500):
                bodies = (
                    {"flow_id": FLOW_ID, "idempotency_key": f"key-{(number * 1000 + start + i) % 400}"}
                    for i in range(500)
                )
                ids += await asyncio.gather(*(producer.publish(body) for body in bodies))
            replies = await producer.replies_to(ids)
            assert all(len(each) == 1 for each in producer.replies.values())
            return replies

    replies = [
        reply
        for replies in await asyncio.gather(*(produce(number) for number in range(4)))
        for reply in replies
    ]
    assert len(replies) == 4_000
    assert sorted({reply.status for reply in replies}) == [200, 201]
    assert sum(reply.status == 201 for reply in replies) == 400
    ids_by_key: dict[str, set[str]] = {}
    for reply in replies:
        ids_by_key.setdefault(reply.body["idempotency_key"], set()).add(reply.body["id"])
    assert len(ids_by_key) == 400
    assert {len(ids) for ids in ids_by_key.values()} == {1}
    assert len(await fetch_runs(database_url)) == 400
    assert [worker.terminate() for worker in workers] == [0] * len(workers)


REFUSED = [
    pytest.param(b"", {}, 422, id="empty body"),
    pytest.param(b"{nope", {}, 422, id="invalid JSON"),
    pytest.param(b"[]", {}, 422, id="JSON array"),
    pytest.param({"flow_id": FLOW_ID, "no_such_field": "red"}, {}, 422, id="unknown field"),
    pytest.param({"flow_id": 7, "tags": "x", "parameters": []}, {}, 422, id="wrong types"),
    pytest.param({"name": "no flow"}, {}, 422, id="missing flow_id"),
    pytest.param({"flow_id": FLOW_ID}, {"content_type": "text/plain"}, 415, id="wrong content type"),
    pytest.param({"flow_id": FLOW_ID}, {"content_encoding": "gzip"}, 415, id="content encoding"),
    pytest.param({"flow_id": FLOW_ID, "name": "x" * 20_000}, {}, 413, id="body over the limit"),
    pytest.param(
        {"flow_id": FLOW_ID}, {"headers": {"x-prefect-api-version": "0.7.0"}}, 400, id="API version too old"
    ),
    pytest.param(
        {"flow_id": FLOW_ID}, {"headers": {"x-prefect-api-version": "new"}}, 400, id="API version malformed"
    ),
    pytest.param(b'{"flow_id": "%s", "name": "a\\u0000b"}' % FLOW_ID.encode(), {}, 422, id="NUL character"),
    pytest.param(
        b'{"flow_id": "%s", "name": "a\\ud800b"}' % FLOW_ID.encode(), {}, 422, id="half a surrogate pair"
    ),
    pytest.param(b"[" * 9_000, {}, 400, id="nested too deep"),
    pytest.param(b'{"flow_id": "\xff"}', {}, 400, id="invalid UTF-8"),
]


@pytest.mark.parametrize(("body", "properties", "status"), REFUSED)
async def test_a_refused_request_is_answered_and_kept_and_its_neighbours_are_served(
    shared_worker: Producer, body: bytes | dict[str, Any], properties: dict[str, Any], status: int
) -> None:
    producer = shared_worker
    before = await producer.publish({"flow_id": FLOW_ID})
    headers = {"mine": "kept", **properties.get("headers", {})}
    bad = await producer.publish(body, message_id="bad-1", **{**properties, "headers": headers})
    after = await producer.publish({"flow_id": FLOW_ID})

    first, refused, last = await producer.replies_to([before, bad, after])
    assert (first.status, refused.status, last.status) == (201, status, 201)
    assert refused.type == "error"
    assert set(refused.body) == (
        {"exception_message", "exception_detail", "request_body"} if status == 422 else {"detail"}
    )
    (letter,) = await producer.dead_letters(1)
    assert letter.raw == (body if isinstance(body, bytes) else json.dumps(body).encode())
    assert (letter.correlation_id, letter.message_id, letter.headers["mine"]) == (bad, "bad-1", "kept")
    assert letter.headers["x-error-status"] == status
    assert letter.headers["x-error"]
    assert "\n" not in letter.headers["x-error"]
    assert letter.headers["x-failed-at"].startswith("20")


async def test_a_request_without_reply_queue_is_served_all_the_same(
    start_worker: StartWorker, producer: Producer, database_url: str
) -> None:
    start_worker(database_url)
    await producer.publish({"flow_id": FLOW_ID, "name": "quiet"}, reply_to=None)
    assert (await producer.request({"flow_id": FLOW_ID, "name": "loud"})).status == 201
    assert {run["name"] for run in await fetch_runs(database_url)} == {"quiet", "loud"}


async def test_a_reply_queue_that_does_not_exist_holds_nobody_up(
    start_worker: StartWorker, producer: Producer, sqlite_url: str
) -> None:
    worker = start_worker(sqlite_url)
    await producer.publish({"flow_id": FLOW_ID, "name": "lost"}, reply_to="no-such-queue")
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201
    worker.wait_until_logged("reply_unroutable")
    assert worker.terminate() == 0
    assert await producer.depth() == 0
    assert len(await fetch_runs(sqlite_url)) == 2


async def test_a_direct_reply_that_arrives_does_not_count_as_unroutable(
    start_worker: StartWorker, sqlite_url: str, amqp_url: str, queue: str
) -> None:
    """RabbitMQ returns it even so if it is mandatory."""
    worker = start_worker(sqlite_url)
    async with FlowRunClient(amqp_url, queue=queue) as client:
        await client.create_flow_run(flow_id=FLOW_ID)
    metrics = httpx.get(f"{worker.http}/metrics").text
    assert worker.terminate() == 0
    assert "flow_run_worker_replies_unroutable_total 0.0" in metrics
    assert "reply_unroutable" not in worker.output


async def test_replies_go_only_to_queues_that_the_pattern_allows(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, amqp_url: str
) -> None:
    start_worker(sqlite_url, reply_to_pattern=r"replies\..*")
    await producer.publish({"flow_id": FLOW_ID, "name": "not-allowed"})
    (letter,) = await producer.dead_letters(1)
    assert letter.headers["x-error-status"] == 400
    assert producer.reply_to in letter.headers["x-error"]
    async with FlowRunClient(amqp_url, queue=producer.queue) as client:  # by direct reply-to
        assert (await client.create_flow_run(flow_id=FLOW_ID)).flow_id == UUID(FLOW_ID)
    assert len(await fetch_runs(sqlite_url)) == 1
    assert not producer.replies


async def test_a_reply_to_the_workers_own_queue_is_refused(
    start_worker: StartWorker, producer: Producer, sqlite_url: str
) -> None:
    start_worker(sqlite_url)
    for own in (producer.queue, f"{producer.queue}.dead"):
        await producer.publish({"flow_id": FLOW_ID}, reply_to=own)
    letters = await producer.dead_letters(2)
    assert [letter.headers["x-error-status"] for letter in letters] == [400, 400]
    assert await fetch_runs(sqlite_url) == []


async def test_without_a_key_a_message_id_makes_one_run_of_the_same_message(
    start_worker: StartWorker, producer: Producer, database_url: str
) -> None:
    """A retry of the same message is the same request; another message with its id is not."""
    start_worker(database_url)
    same = {"message_id": "m-1", "correlation_id": "c-1"}
    first = await producer.request({"flow_id": FLOW_ID, "name": "a"}, **same)
    await producer.publish({"flow_id": FLOW_ID, "name": "a"}, **same)
    other = await producer.request({"flow_id": FLOW_ID, "name": "b"}, message_id="m-1", correlation_id="c-2")
    assert (first.status, other.status) == (201, 201)
    second = producer.replies["c-1"][1]
    assert (second.status, second.body["id"]) == (200, first.body["id"])
    assert second.body["idempotency_key"] is None
    assert len(await fetch_runs(database_url)) == 2


async def test_an_empty_key_is_no_key(
    start_worker: StartWorker, producer: Producer, database_url: str
) -> None:
    start_worker(database_url)
    replies = [await producer.request({"flow_id": FLOW_ID, "idempotency_key": ""}) for _ in range(2)]
    assert [reply.status for reply in replies] == [201, 201]
    assert len(await fetch_runs(database_url)) == 2


async def test_a_key_at_the_limit_is_stored_and_a_longer_one_refused(
    start_worker: StartWorker, producer: Producer, database_url: str
) -> None:
    """The key is incompressible and nearly fills a PostgreSQL index entry."""
    start_worker(database_url)
    noise = random.Random(1)
    ascii_key = "".join(noise.choices(string.ascii_letters + string.digits + string.punctuation, k=2500))
    wide_key = "".join(chr(noise.randrange(0x10000, 0x20000)) for _ in range(625))
    for key in (ascii_key, wide_key):
        replies = [await producer.request({"flow_id": FLOW_ID, "idempotency_key": key}) for _ in range(2)]
        assert [(reply.status, reply.body["idempotency_key"]) for reply in replies] == [
            (201, key),
            (200, key),
        ]
    for key in (f"{ascii_key}x", f"{wide_key}x", "x" * 2501):
        reply = await producer.request({"flow_id": FLOW_ID, "idempotency_key": key})
        assert reply.status == 422
        (error,) = reply.body["exception_detail"]
        assert (error["loc"], error["type"]) == (["body", "idempotency_key"], "string_too_long")
    assert len(await fetch_runs(database_url)) == 2


async def test_the_exchange_leads_to_the_queue(
    start_worker: StartWorker, producer: Producer, sqlite_url: str
) -> None:
    start_worker(sqlite_url)
    exchange, _, routing_key = producer.queue.rpartition(".")
    import aio_pika

    message = aio_pika.Message(
        json.dumps({"flow_id": FLOW_ID}).encode(), reply_to=producer.reply_to, correlation_id="x"
    )
    await (await producer.channel.get_exchange(exchange)).publish(message, routing_key=routing_key)
    (reply,) = await producer.replies_to(["x"])
    assert reply.status == 201


async def test_a_database_of_its_own_has_no_deployments(shared_worker: Producer) -> None:
    """The others of the batch are served."""
    deployment = {"deployment_name": f"flow/{uuid4()}", "idempotency_key": "k"}
    sent = [
        await shared_worker.publish(deployment, type="create_flow_run_from_deployment"),
        await shared_worker.publish({"flow_id": FLOW_ID}),
        await shared_worker.publish({"flow_id": FLOW_ID}, type="create_flow_run"),
        await shared_worker.publish(deployment),
    ]
    missing, *served, without_type = await shared_worker.replies_to(sent)
    assert [reply.status for reply in served] == [201, 201]
    assert without_type.status == 422
    assert (missing.status, missing.body) == (404, {"detail": "Deployment not found"})
    assert missing.headers["x-error"] == "A database of the worker's own has no deployments."
    letters = await shared_worker.dead_letters(2)
    assert {(letter.type, letter.raw) for letter in letters} == {
        (type_, json.dumps(deployment).encode()) for type_ in ("create_flow_run_from_deployment", None)
    }


async def test_sigterm_under_load_loses_nothing_and_does_nothing_twice(
    start_worker: StartWorker, producer: Producer, database_url: str
) -> None:
    worker = start_worker(database_url)
    bodies = [{"flow_id": FLOW_ID, "idempotency_key": f"key-{number}"} for number in range(4_000)]
    ids = await asyncio.gather(*(producer.publish(body) for body in bodies[:2_000]))
    publishing = asyncio.create_task(_publish(producer, bodies[2_000:]))
    while not producer.replies:
        await asyncio.sleep(0.01)
    exit_code = await asyncio.to_thread(worker.terminate)
    assert exit_code == 0, worker.output
    ids += await publishing
    start_worker(database_url)
    replies = await producer.replies_to(ids)
    # Finished requests were acknowledged: none is answered twice, or with 200.
    assert {len(producer.replies[each]) for each in ids} == {1}
    assert {reply.status for reply in replies} == {201}
    assert len(await fetch_runs(database_url)) == len(bodies)


async def _publish(producer: Producer, bodies: list[dict[str, Any]]) -> list[str]:
    return await asyncio.gather(*(producer.publish(body) for body in bodies))
