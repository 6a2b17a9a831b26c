"""New runs as the pipeline makes them: decoded from a message."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from worker.contract.decode import decode
from worker.contract.message import Message
from worker.creation import NewRun, new_run

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


def request(message_id: str | None = None, **fields: Any) -> NewRun:
    """The run that a message with these body fields asks for."""
    body = json.dumps({"flow_id": FLOW_ID, **fields}).encode()
    return new_run(
        decode(Message(body, {}, message_id=message_id), max_body_bytes=1_000_000), datetime.now(UTC)
    )


def unstorable(**fields: Any) -> NewRun:
    """A run that no database takes: no rule of the contract lets it come that far, so a bug has to
    stand for it.
    """
    new = request(**fields)
    new.run.name = None  # type: ignore[assignment]  # that is the bug
    return new


def keyed(keys: list[str]) -> list[NewRun]:
    """A run for each of these idempotency keys."""
    return [request(idempotency_key=key, name=f"{key}-{uuid4().hex[:4]}") for key in keys]
