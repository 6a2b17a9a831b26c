"""A broker that refuses messages above a megabyte. A larger record or error is answered with the
reason alone, without losing a session. ``-s`` prints the results.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import StartWorker
from tests.support.database import fetch
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess

MAX_MESSAGE_SIZE = 1024 * 1024
FLOW_ID = str(uuid4())
ORDINARY = 200
OF_EACH = 6


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
    with RabbitMQ(settings={"max_message_size": MAX_MESSAGE_SIZE}) as node:
        yield node


def ordinary(number: int) -> dict[str, Any]:
    return {"flow_id": FLOW_ID, "idempotency_key": f"ordinary {number}"}


def close_to_it(number: int) -> dict[str, Any]:
    """Valid; its record exceeds the limit."""
    body = {"flow_id": FLOW_ID, "idempotency_key": f"close to it {number}", "context": {"text": ""}}
    body["context"] = {"text": "x" * (1_047_460 - len(json.dumps(body)))}
    assert len(json.dumps(body)) == 1_047_460
    return body


def below_it(number: int) -> dict[str, Any]:
    """Valid; its record just fits, and exceeds the worker's threshold for small messages."""
    return {
        "flow_id": FLOW_ID,
        "idempotency_key": f"below it {number}",
        "context": {"text": "x" * random.Random(number).randrange(60_000, 1_040_000)},
    }


def shown_twice(number: int) -> dict[str, Any]:
    """Refused; the error shows the context twice: at its place and in the whole request."""
    return {"flow_id": FLOW_ID, "name": f"shown twice {number}", "context": "x" * 600_000}


def labels(number: int) -> dict[str, Any]:
    """Refused at 17 places; the error shows each of them."""
    each = ["x" * 59_900]
    return {"flow_id": FLOW_ID, "name": f"{number}", "labels": {f"label {n}": each for n in range(17)}}


LARGE: list[Callable[[int], dict[str, Any]]] = [close_to_it, below_it, shown_twice, labels]
MIXES: dict[str, list[Callable[[int], dict[str, Any]]]] = {
    "all": LARGE,
    "valid": [close_to_it],
    "refused": [shown_twice, labels],
    "that fit": [below_it],
}
ORDERS = ("mixed", "large first", "large last")


def requests(kinds: list[Callable[[int], dict[str, Any]]], order: str) -> list[tuple[str, dict[str, Any]]]:
    """The requests, each with its kind's name."""
    large = [(kind.__name__, kind(number)) for number in range(OF_EACH) for kind in kinds]
    small = [("ordinary", ordinary(number)) for number in range(ORDINARY)]
    if order == "large first":
        return large + small
    if order == "large last":
        return small + large
    mixed = large + small
    random.Random(len(mixed)).shuffle(mixed)
    return mixed


async def asked(producer: Producer, wanted: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """Publish these at once; returns each one's kind by its correlation id."""
    ids = await asyncio.gather(*(producer.publish(body) for _, body in wanted))
    return {each: kind for each, (kind, _) in zip(ids, wanted, strict=True)}


async def check(worker: WorkerProcess, producer: Producer, refused: int) -> None:
    """Assert that no session was lost, nothing was repeated, and nothing is left."""
    assert "session_lost" not in worker.output
    assert "Traceback" not in worker.output
    assert await asyncio.to_thread(worker.metric, "flow_run_worker_redelivered_total") == 0
    assert worker.output.count("broker_limits_messages") <= 1
    assert await asyncio.to_thread(worker.terminate) == 0
    assert await producer.depth() == 0
    assert await producer.depth(f"{producer.queue}.dead") == refused
    assert {len(replies) for replies in producer.replies.values()} == {1}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mix", MIXES)
async def test_what_is_too_large_for_the_broker_costs_nobody_else(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, mix: str, order: str
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    wanted = requests(MIXES[mix], order)
    ids = await asked(producer, wanted)
    answered = dict(zip(ids, await producer.replies_to(list(ids)), strict=True))
    statuses = Counter((ids[each], reply.status) for each, reply in answered.items())
    print(
        f"\n{mix}, {order}: {dict(statuses)}; limits found {worker.output.count('broker_limits_messages')},"
        f" replies shortened {worker.output.count('reply_too_large')}"
    )
    expected = {"ordinary": 201, "close_to_it": 201, "below_it": 201, "shown_twice": 422, "labels": 422}
    assert dict(statuses.keys()) == {kind: expected[kind] for kind in {kind for kind, _ in wanted}}
    runs = await fetch(sqlite_url, "SELECT id, idempotency_key FROM flow_run")
    by_key = {run["idempotency_key"]: run["id"] for run in runs}
    assert len(by_key) == len(runs) == sum(expected[kind] == 201 for kind, _ in wanted)
    for (kind, body), (_, reply) in zip(wanted, answered.items(), strict=True):
        assert len(reply.raw) <= MAX_MESSAGE_SIZE
        if expected[kind] == 201:
            assert reply.type == "flow_run"
            assert reply.body["id"] == by_key[body["idempotency_key"]]
        else:
            assert reply.type == "error"
            assert reply.headers["x-error"]
        if kind == "close_to_it":
            assert "the broker" in reply.headers["x-error"].lower()
        elif expected[kind] == 201:
            assert "x-error" not in reply.headers
            assert reply.body["idempotency_key"] == body["idempotency_key"]
    await check(worker, producer, sum(expected[kind] == 422 for kind, _ in wanted))


async def test_what_was_too_large_once_is_not_published_so_again(
    start_worker: StartWorker, producer: Producer, sqlite_url: str
) -> None:
    """The first reply teaches the worker the limit, which then holds for the same run again."""
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    replies = [await producer.request(close_to_it(0)) for _ in range(3)]
    assert [reply.status for reply in replies] == [201, 200, 200]
    assert {reply.body["id"] for reply in replies} == {replies[0].body["id"]}
    assert "the broker takes 1,048,576" in replies[1].body["detail"]
    # Errors show less, rather than nothing.
    refused = await producer.request(shown_twice(0))
    assert refused.body["exception_detail"][0]["loc"] == ["body", "context"]
    await check(worker, producer, 1)
