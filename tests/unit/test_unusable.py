"""Runs that Prefect's server could not handle; tests/conformance/test_odd_runs.py asks a server for
each rule.
"""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from tests.conformance.odd_runs import nested, tags
from worker.contract.decode import decode
from worker.contract.message import Message
from worker.runs.creation import NewRun, requested_run
from worker.runs.unusable import unusable

NOW = datetime(2030, 1, 1, tzinfo=UTC)
FLOW = str(UUID(int=1))
AUTOMATION = {"prefect-automation-id": str(UUID(int=2)), "prefect-automation-name": "YQ=="}


def requested(headers: dict[str, Any] | None = None, **fields: Any) -> NewRun:
    body = json.dumps({"flow_id": FLOW, **fields}).encode()
    new = requested_run(decode(Message(body, headers or {}), max_body_bytes=2**20), NOW)
    assert isinstance(new, NewRun)
    return new


def data(value: Any) -> dict[str, Any]:
    return {"state": {"type": "COMPLETED", "data": value}}


def scheduled(time: str) -> dict[str, Any]:
    return {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": time}}}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, None),
        ({"parameters": {"a": nested(250)}}, None),
        ({"parameters": {"a": nested(251)}}, "body.parameters"),
        ({"parameters": {"a": nested(250, {})}}, None),
        ({"parameters": {"a": nested(251, {})}}, "body.parameters"),
        ({"context": {"a": nested(251)}}, "body.context"),
        ({"job_variables": {"a": nested(251)}}, "body.job_variables"),
        (data(nested(250)), None),
        (data(nested(251)), "body.state.data"),
        ({"state": {"type": "PENDING", "state_details": {"x": nested(400)}}}, None),
        (data({"storage_key": "a", "serializer": {"type": "json"}}), None),
        (data({"storage_key": 1}), "body.state.data"),
        (data({"storage_key": "a", "serializer": {"type": "pickle", "picklelib": "os"}}), "body.state.data"),
        (data(["storage_key"]), None),
        (scheduled("0001-01-01T00:00:00.000001Z"), None),
        (scheduled("0001-01-01T00:00:00Z"), "body.state.state_details.scheduled_time"),
        (scheduled("9999-12-31T23:59:59.999999Z"), None),
        ({"tags": ["a" * 2500, "é" * 1250]}, None),
        ({"tags": ["a", "é" * 1251]}, "body.tags"),
        ({"state": {"type": "PENDING", "name": "語" * 833}}, None),
        ({"state": {"type": "PENDING", "name": "語" * 834}}, "body.state.name"),
        ({"state": {"type": "PENDING", "name": "a" * 100_000}}, None),
    ],
)  # fmt: skip
def test_json_that_prefect_cannot_show_is_told_by_its_place(
    fields: dict[str, Any], place: str | None
) -> None:
    refusal = unusable(requested(**fields), [[]])
    assert (refusal and ".".join(refusal.body["exception_detail"][0]["loc"])) == place
    if refusal is not None:
        assert refusal.status == 422


@pytest.mark.parametrize(
    ("mine", "inherited", "headers", "usable"),
    [
        (tags(99), [[]], {}, True),
        (tags(100), [[]], {}, False),
        (tags(98), [[]], AUTOMATION, True),
        (tags(99), [[]], AUTOMATION, False),
        (tags(99) * 2, [[]], {}, True),
        (tags(98), [[], None], {}, True),
        (tags(99), [None, []], {}, False),
        (tags(50), [tags(49, "flow")], {}, True),
        (tags(50), [tags(50, "flow")], {}, False),
        (tags(90), [tags(90), tags(90), tags(90)], {}, True),
        (tags(90), [tags(90), tags(90), tags(98)], {}, False),
    ],
)  # fmt: skip
def test_tags_and_rows_fit_into_an_event(
    mine: list[str], inherited: list[Any], headers: dict[str, Any], usable: bool
) -> None:
    refusal = unusable(requested(headers, tags=mine), inherited)
    assert (refusal is None) is usable


def test_a_work_pool_and_its_queue_take_two_places() -> None:
    new = requested(tags=tags(98))
    assert unusable(new, [[]]) is None
    new.run.work_pool_id = new.run.work_queue_id = UUID(int=3)
    refusal = unusable(new, [[]])
    assert refusal is not None
    assert "more than 97 tags" in refusal.line
    assert "it has 98" in refusal.line
