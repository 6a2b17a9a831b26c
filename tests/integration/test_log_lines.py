"""A worker's log lines about its requests."""

import json
from datetime import datetime, timedelta
from itertools import pairwise

import pytest

from tests.conftest import StartWorker
from tests.support.producer import Producer

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
REQUESTS = 1000


@pytest.mark.parametrize(("level", "each"), [("info", []), ("debug", ["created", "existing"])])
async def test_what_was_stored_each_refusal_and_only_at_debug_each_batch_and_request(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, level: str, each: list[str]
) -> None:
    worker = start_worker(sqlite_url, log_format="json", log_level=level)
    keyed = {"flow_id": FLOW_ID, "idempotency_key": "order-4711"}
    for body in (keyed, keyed, {"flow_id": 1}):
        await producer.request(body)
    assert worker.terminate() == 0
    lines = [json.loads(line) for line in worker.output.splitlines()]
    stored = [
        (line["created"], line["existing"], line["refused"]) for line in lines if line["event"] == "stored"
    ]
    assert stored == [(1, 0, 0), (0, 1, 0)]
    assert len([line for line in lines if line["event"] == "batch"]) == len(each)
    (refused,) = [line for line in lines if line["event"] == "refused"]
    assert refused["status"] == 422
    assert "flow_id" in refused["error"]
    told = [line for line in lines if line["event"] in ("created", "existing")]
    assert [line["event"] for line in told] == each
    assert all(line["idempotency_key"] == "order-4711" for line in told)
    assert len({line["flow_run_id"] for line in told}) == bool(each)


async def test_under_load_what_was_stored_is_told_once_a_second(
    start_worker: StartWorker, producer: Producer, sqlite_url: str
) -> None:
    worker = start_worker(sqlite_url, log_format="json")
    for number in range(REQUESTS):
        await producer.request({"flow_id": FLOW_ID, "idempotency_key": f"order-{number}"})
    assert worker.terminate() == 0
    lines = [line for line in map(json.loads, worker.output.splitlines()) if line["event"] == "stored"]
    assert sum(line["created"] for line in lines) == REQUESTS
    # One request at a time, so each is a batch.
    assert sum(line["batches"] for line in lines) == REQUESTS
    times = [datetime.fromisoformat(line["timestamp"]) for line in lines]
    assert all(following - time > timedelta(seconds=0.9) for time, following in pairwise(times[:-1]))
    assert max(line["batches"] for line in lines) > 1
