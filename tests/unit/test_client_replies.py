"""How the client reads a reply."""

import asyncio
import json
import pickle
from typing import Any

import pytest

from worker.client import (
    ClientError,
    Conflict,
    FlowRunRefused,
    InvalidFlowRun,
    NoReply,
    NotFound,
    UnreadableReply,
)
from worker.client.replies import PendingReplies, Reply

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
RECORD: dict[str, Any] = {"id": FLOW_ID, "flow_id": FLOW_ID, "name": "blue-fox"}


def reply(status: int | None, body: Any, reason: str | None = None) -> Reply:
    return Reply(status, reason, body if isinstance(body, bytes) else json.dumps(body).encode())


def test_record_is_read() -> None:
    assert reply(201, RECORD).record().name == "blue-fox"


def test_record_is_read_however_deep_its_parameters_are() -> None:
    """pydantic's parser stops at some 200 levels; the worker allows 500."""
    nested: Any = "deepest"
    for _ in range(490):
        nested = [nested]
    assert reply(201, {**RECORD, "parameters": {"x": nested}}).record().parameters == {"x": nested}


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (None, RECORD, "has no status"),
        (201, b"", "201"),
        (201, b"{", "201"),
        (201, b"\xff\xfe", "201"),
        (201, {}, "flow_id"),
        (201, {**RECORD, "parameters": {"x": 1}, "total_run_time": "x"}, "total_run_time"),
        (201, b"[" * 100_000, "201"),
        (409, b"no JSON", "409"),
        (422, ["a list"], "no object"),
        (500, b"\x80", "500"),
    ],
)
def test_reply_that_cannot_be_read_says_why(status: int | None, body: Any, why: str) -> None:
    sent = reply(status, body)
    with pytest.raises(UnreadableReply, match=why) as unreadable:
        sent.record()
    assert (unreadable.value.status, unreadable.value.body) == (status, sent.body)


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFound), (409, Conflict), (422, InvalidFlowRun), (415, FlowRunRefused)]
)
def test_refusal_is_raised_by_its_status(status: int, error: type[FlowRunRefused]) -> None:
    with pytest.raises(error, match=f"{status}: No.") as refused:
        reply(status, {"detail": "No."}).record()
    assert (refused.value.status, refused.value.reason) == (status, None)


def test_refusal_has_the_workers_reason() -> None:
    """Prefect's own body for a 409 says no more than "See server logs"."""
    with pytest.raises(Conflict, match="409: There is no flow") as refused:
        reply(409, {"detail": "Data integrity conflict."}, "There is no flow 5d9c…").record()
    assert refused.value.reason == "There is no flow 5d9c…"
    assert refused.value.body == {"detail": "Data integrity conflict."}


def test_refusal_without_a_reason_lists_what_is_wrong() -> None:
    detail = [{"loc": ["body", "flow_id"], "msg": "Field required", "type": "missing"}, {}]
    with pytest.raises(InvalidFlowRun, match=r"body\.flow_id: Field required") as refused:
        reply(422, {"exception_detail": detail}).record()
    assert refused.value.errors == detail


@pytest.mark.parametrize(
    "error",
    [
        Conflict(409, {"detail": "x"}, "why"),
        NoReply("none came", "id"),
        UnreadableReply("not read", None, b"x"),
        ClientError("text"),
        ClientError(),
    ],
)
def test_errors_can_be_pickled(error: ClientError) -> None:
    """As Celery and multiprocessing do."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


async def test_replies_that_nobody_waits_for_are_forgotten() -> None:
    replies = PendingReplies()
    cancelled, failed = replies.expect("a"), replies.expect("b")
    cancelled.cancel()
    replies.fail(ClientError("gone"))
    with pytest.raises(ClientError, match="gone"):
        await failed
    await asyncio.sleep(0)
    assert not replies._futures
