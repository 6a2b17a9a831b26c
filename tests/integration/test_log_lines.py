"""What a worker logs of the requests that it serves."""

import orjson
import pytest

from tests.conftest import StartWorker
from tests.producer import Producer

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


@pytest.mark.parametrize(("level", "each"), [("info", []), ("debug", ["created", "existing"])])
async def test_a_line_a_batch_and_a_refusal_and_for_each_request_only_at_debug(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, level: str, each: list[str]
) -> None:
    worker = start_worker(sqlite_url, log_format="json", log_level=level)
    keyed = {"flow_id": FLOW_ID, "idempotency_key": "order-4711"}
    for body in (keyed, keyed, {"flow_id": 1}):
        await producer.request(body)
    assert worker.terminate() == 0
    lines = [orjson.loads(line) for line in worker.output.splitlines()]
    batches = [(line["created"], line["existing"], line["refused"]) for line in lines if line["event"] == "batch"]
    assert batches == [(1, 0, 0), (0, 1, 0)]
    (refused,) = [line for line in lines if line["event"] == "refused"]
    assert refused["status"] == 422
    assert "flow_id" in refused["error"]
    told = [line for line in lines if line["event"] in ("created", "existing")]
    assert [line["event"] for line in told] == each
    assert all(line["idempotency_key"] == "order-4711" for line in told)
    assert len({line["flow_run_id"] for line in told}) == bool(each)
