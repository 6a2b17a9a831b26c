"""A request as the client writes it."""

import json
import math
from typing import Any
from uuid import UUID

import pytest

from worker.client import NotSerializable
from worker.client.message import build_message
from worker.contract.request import CreateFlowRun
from worker.contract.state import StateType

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


def test_message_has_what_it_was_asked_for_and_nothing_else() -> None:
    message = build_message({"flow_id": UUID(FLOW_ID), "name": None}, {"traceparent": "00"}, reply_to="here")
    assert json.loads(message.body) == {"flow_id": FLOW_ID}
    properties = {name: value for name, value in message.properties if value is not None}
    assert properties.pop("message_id") == properties.pop("correlation_id") == message.properties.message_id
    assert properties == {
        "content_type": "application/json",
        "headers": {"traceparent": "00"},
        "delivery_mode": 2,
        "message_type": "create_flow_run",
        "reply_to": "here",
    } | {name: "" for name in properties if name == "cluster_id"}  # pamqp's, and never written


def test_fire_and_forget_has_no_correlation_id() -> None:
    message = build_message({"flow_id": FLOW_ID}, None).properties
    assert (message.reply_to, message.correlation_id) == (None, None)
    assert message.message_id


def test_message_can_have_a_type() -> None:
    assert build_message(b"{}", None, type="create_flow_run_from_deployment").properties.message_type == (
        "create_flow_run_from_deployment"
    )


def test_message_is_the_same_to_the_letter_each_time() -> None:
    message = build_message({"flow_id": FLOW_ID}, {"x": 1}, reply_to="here")
    assert message.properties.marshal() == message.properties.marshal()


def test_two_messages_of_one_request_are_two() -> None:
    request = {"flow_id": FLOW_ID}
    ids = {build_message(request, None).properties.message_id for _ in range(2)}
    assert len(ids) == 2


def test_model_is_written_as_pydantic_writes_it() -> None:
    model = CreateFlowRun.model_validate(
        {
            "flow_id": FLOW_ID,
            "parameters": {"deep": [{"x": 1.5}]},
            "state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2026-01-02T03:04:05Z"}},
            "empirical_policy": {"retries": 2, "retry_delay": 3},
            "labels": {"a": 1, "b": True},
            "idempotency_key": "key",
        }
    )
    assert json.loads(build_message(model, None).body) == json.loads(
        model.model_dump_json(exclude_unset=True)
    )


@pytest.mark.parametrize("state", ["SCHEDULED", "scheduled", StateType.SCHEDULED, {"type": "SCHEDULED"}])
def test_state_may_be_its_type_alone(state: object) -> None:
    body = json.loads(build_message({"flow_id": FLOW_ID, "state": state}, None).body)
    assert body["state"] == {"type": "SCHEDULED"}


def test_json_is_sent_as_it_is() -> None:
    assert build_message(b'{"a": NaN', None).body == b'{"a": NaN'


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"parameters": {"x": math.nan}}, "parameters.x is nan"),
        ({"parameters": {"deep": [1, {"y": -math.inf}]}}, "parameters.deep.1.y is -inf"),
        ({"parameters": {"a": "NaN", "b": (1.0, math.inf)}}, "parameters.b.1 is inf"),
        ({"labels": {"x": math.nan}}, "labels.x is nan"),
        ({"context": {"": math.nan}}, "context. is nan"),
    ],
)
def test_number_that_json_lacks_is_refused_with_its_place(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(NotSerializable, match=place):
        build_message({"flow_id": FLOW_ID, **fields}, None)


def test_number_that_json_lacks_is_refused_in_a_model() -> None:
    model = CreateFlowRun(flow_id=UUID(FLOW_ID), parameters={"x": math.nan})
    with pytest.raises(NotSerializable, match=r"parameters\.x is nan"):
        build_message(model, None)


def test_words_for_such_numbers_may_stand_in_texts() -> None:
    parameters = {"x": "NaN", "Infinity": "-Infinity"}
    body = json.loads(build_message({"flow_id": FLOW_ID, "parameters": parameters}, None).body)
    assert body["parameters"] == parameters


@pytest.mark.parametrize("headers", [{"x": object()}, {"x": [object()]}])
def test_headers_that_amqp_lacks_are_refused(headers: dict[str, Any]) -> None:
    with pytest.raises(NotSerializable, match="can't be written"):
        build_message({"flow_id": FLOW_ID}, headers)
