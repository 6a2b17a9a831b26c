"""A request with every field, and new runs as the pipeline makes them: decoded from a message."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from worker.contract.decode import decode
from worker.contract.kinds import FROM_DEPLOYMENT
from worker.contract.message import Message
from worker.runs.creation import NewRun, UnresolvedRun, new_run, requested_run

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"

# Every body field of the endpoint, none at its default.
EVERY_FIELD: dict[str, Any] = {
    "state": {
        "type": "SCHEDULED",
        "name": "Planned",
        "message": "for tonight",
        "data": {"why": ["nightly", 1]},
        "state_details": {
            "scheduled_time": "2030-01-02T03:04:05.678900+02:00",
            "cache_key": "c",
            "pause_reschedule": True,
        },
    },
    "name": "order-4711",
    "flow_id": FLOW_ID,
    "flow_version": "1.2.3",
    "parameters": {"text": "ü 🚀", "number": 1.5, "big": 2**70 + 1, "nested": {"list": [1, None, True]}},
    "context": {"from": "test"},
    "parent_task_run_id": str(uuid4()),
    "infrastructure_document_id": str(uuid4()),
    "empirical_policy": {"retries": 3, "retry_delay": 10, "pause_keys": ["a"], "retry_type": "reschedule"},
    "tags": ["orders", "eu"],
    "labels": {"team": "blue", "tier": 2, "ratio": 0.5, "gold": True},
    "idempotency_key": "order-4711",
    "work_queue_name": "urgent",
    "job_variables": {"cpu": 2},
    "deployment_id": str(uuid4()),
}


def same_as_sent(record: dict[str, Any]) -> None:
    """Assert that a record has the values of :data:`EVERY_FIELD`."""
    for field in EVERY_FIELD.keys() - {"state", "empirical_policy", "labels"}:
        assert record[field] == EVERY_FIELD[field], field
    assert record["labels"] == {"prefect.flow.id": FLOW_ID, **EVERY_FIELD["labels"]}
    assert record["empirical_policy"] == {
        "max_retries": 0,
        "retry_delay_seconds": 0.0,
        "resuming": False,
        **EVERY_FIELD["empirical_policy"],
    }
    state, sent = record["state"], EVERY_FIELD["state"]
    assert {name: state[name] for name in ("type", "name", "message", "data")} == {
        name: sent[name] for name in ("type", "name", "message", "data")
    }
    details = state["state_details"]
    assert details["cache_key"] == "c"
    assert details["pause_reschedule"] is True
    assert details["flow_run_id"] == record["id"]
    assert details["task_run_id"] == EVERY_FIELD["parent_task_run_id"]
    assert details["scheduled_time"].startswith("2030-01-02T03:04:05.678900+02:00")
    assert record["state_id"] == state["id"]
    assert (record["state_type"], record["state_name"]) == ("SCHEDULED", "Planned")


def request(message_id: str | None = None, **fields: Any) -> NewRun:
    """The run that a message with these body fields asks for."""
    body = json.dumps({"flow_id": FLOW_ID, **fields}).encode()
    return new_run(
        decode(Message(body, {}, message_id=message_id), max_body_bytes=1_000_000), datetime.now(UTC)
    )


def request_of_deployment(**fields: Any) -> UnresolvedRun:
    """The run of a deployment that a message with these body fields asks for."""
    message = Message(json.dumps(fields).encode(), {}, type=FROM_DEPLOYMENT.type)
    requested = requested_run(decode(message, max_body_bytes=1_000_000), datetime.now(UTC))
    assert isinstance(requested, UnresolvedRun)
    return requested


def unstorable(**fields: Any) -> NewRun:
    """A run that no database stores. The contract's rules exclude it, so it simulates a bug."""
    new = request(**fields)
    new.run.name = None  # type: ignore[assignment]  # that is the bug
    return new


def keyed(keys: list[str]) -> list[NewRun]:
    """A run for each of these idempotency keys."""
    return [request(idempotency_key=key, name=f"{key}-{uuid4().hex[:4]}") for key in keys]
