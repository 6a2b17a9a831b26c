"""Messages that know nothing of Prefect: which they are, and what request each stands for."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings

from tests.unit.test_decode import anything, ends_well
from worker.contract.decode import FlowRunRequest, decode
from worker.contract.errors import Refusal, encode_error
from worker.contract.kinds import FROM_DEPLOYMENT, KINDS
from worker.contract.message import Message
from worker.contract.plain import PlainMessages

ALL = PlainMessages("ship/production")
ONE = PlainMessages("ship/production", "order")
EVENT = {"source": "/orders", "id": "A-1", "type": "order.created", "specversion": "1.0"}


def read(body: bytes, plain: PlainMessages = ALL, headers: Any = None, **properties: Any) -> Any:
    message = Message(body, headers or {}, **properties)
    assert plain.have(message)
    return decode(message, max_body_bytes=1_000_000, plain=plain)


def refusal(body: bytes, plain: PlainMessages = ALL, **properties: Any) -> Refusal:
    with pytest.raises(Refusal) as raised:
        read(body, plain, **properties)
    return raised.value


def event(prefix: str = "cloudEvents:", **changed: str) -> dict[str, str]:
    return {f"{prefix}{name}": value for name, value in (EVENT | changed).items()}


def run_id(body: bytes = b"{}", plain: PlainMessages = ALL, **properties: Any) -> UUID | None:
    request: FlowRunRequest[Any] = read(body, plain, **properties)
    return request.run_id


def test_an_object_is_the_parameters() -> None:
    request = read(b'{"order": 4711, "__prefect_kind": "json"}')
    assert request.kind is FROM_DEPLOYMENT
    assert request.plain
    assert request.body.deployment_name == "ship/production"
    assert request.body.parameters == {"order": 4711, "__prefect_kind": "json"}
    assert request.body.idempotency_key is None


@pytest.mark.parametrize("body", [b"[1, 2]", b'"text"', b"4711", b"null", b"{}", b"true", b"[]", b"NaN"])
def test_any_json_is_the_value_of_one_parameter(body: bytes) -> None:
    (order,) = read(body, ONE).body.parameters.values()
    assert repr(order) == repr(json.loads(body))


@pytest.mark.parametrize("kind", KINDS)
def test_requests_by_their_type_are_none(kind: Any) -> None:
    assert not ALL.have(Message(b"{}", {}, type=kind.type))


@pytest.mark.parametrize("type", [None, "", "order.created", "create_flow_runs", "Create_Flow_Run"])
def test_all_others_are(type: str | None) -> None:
    assert ALL.have(Message(b"{}", {}, type=type))


@pytest.mark.parametrize(
    ("body", "plain", "status", "line"),
    [
        (b"", ALL, 422, "body: The message has no body: send JSON"),
        (b"", ONE, 422, "body: The message has no body: send JSON"),
        (b"[]", ALL, 422, "body: Input should be an object with the parameters of the deployment 'ship/"),
        (b"null", ALL, 422, "WORKER_DEPLOYMENT_PARAMETER"),
        (b"{", ONE, 422, "JSON decode error"),
        (b"\x80\x03}", ALL, 400, "There was an error parsing the body"),
        (b'{"a": "\\u0000"}', ALL, 422, "should not contain NUL"),
        (b'"\\ud800"', ONE, 422, "unpaired surrogates"),
        (b'{"a": "' + b"x" * 600_000 + b'"}', ALL, 422, "less than 524,288 bytes"),
        (b'"' + b"x" * 600_000 + b'"', ONE, 422, "less than 524,288 bytes"),
        (b'"' + b"x" * 1_000_000 + b'"', ONE, 413, "the limit is 1,000,000 bytes"),
        (b"[" * 600 + b"]" * 600, ONE, 400, "There was an error parsing the body"),
    ],
)
def test_odd_bodies_are_refused_with_the_reason(
    body: bytes, plain: PlainMessages, status: int, line: str
) -> None:
    refused = refusal(body, plain)
    assert refused.status == status
    assert line in refused.line
    assert len(encode_error(refused, 10_000)) <= 10_000


@pytest.mark.parametrize(
    "content_type", ["application/cloudevents+json", "Application/CloudEvents-batch+json; charset=utf-8"]
)
def test_events_in_the_body_are_refused(content_type: str) -> None:
    refused = refusal(b"{}", content_type=content_type)
    assert refused.status == 415
    assert "binary mode" in refused.line


def test_a_reply_to_that_cannot_be_read_belongs_to_another_protocol() -> None:
    unreadable = {"reply_to": "it is no UTF-8"}
    assert read(b"{}", unreadable=unreadable).plain
    assert refusal(b"{}", PlainMessages("ship/production", replies=True), unreadable=unreadable).status == 422


def test_message_id_makes_the_run_once() -> None:
    assert run_id() is None
    first = run_id(message_id="1")
    assert first is not None
    assert run_id(message_id="1", headers={"traceparent": "00"}) == first
    assert run_id(message_id="2") != first
    assert run_id(b"{} ", message_id="1") != first


def test_two_queues_of_one_event_make_a_run_each() -> None:
    """An exchange gives one message to the queues of two deployments."""
    other = PlainMessages("invoice/production")
    assert run_id(message_id="1") != run_id(plain=other, message_id="1")
    assert run_id(headers=event()) != run_id(plain=other, headers=event())


@pytest.mark.parametrize("prefix", ["cloudEvents:", "cloudEvents_"])
def test_source_and_id_of_an_event_stand_for_the_message_id(prefix: str) -> None:
    first = run_id(headers=event(prefix))
    assert first is not None
    assert run_id(headers=event(prefix), message_id="anew with each try") == first
    assert run_id(headers=event(prefix, traceparent="00-1", tracestate="a=1")) == first
    assert run_id(headers=event(prefix, id="A-2")) != first
    assert run_id(headers=event(prefix, source="/returns")) != first
    assert run_id(b"[]", ONE, headers=event(prefix)) != first


@pytest.mark.parametrize("missing", ["source", "id"])
def test_half_an_event_is_none(missing: str) -> None:
    headers = event(**{missing: ""})
    assert run_id(headers=headers) is None
    assert run_id(headers=headers, message_id="1") != run_id(headers=headers, message_id="2")


@settings(max_examples=300)
@given(anything)
def test_any_json_ends_well(content: Any) -> None:
    body = json.dumps(content).encode()
    for plain in (ALL, ONE):
        ends_well(Message(body, {}), plain)
