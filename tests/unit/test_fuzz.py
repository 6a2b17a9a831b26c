"""For any input, the line ends in a record or a refusal that can be encoded, of bounded size and
with bounded work.
"""

import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.hostile import CORPUS, FLOW_ID
from tests.fuzz.line import message_of, serve
from tests.support import properties as made
from worker.amqp.properties import join, short_string
from worker.broker.incoming import read_message
from worker.contract.kinds import FROM_DEPLOYMENT
from worker.contract.message import Message

REQUEST: dict[str, Any] = {
    "flow_id": FLOW_ID,
    "name": "a",
    "state": {
        "type": "SCHEDULED",
        "message": "m",
        "data": [1],
        "state_details": {"scheduled_time": "2030-01-02T03:04:05+02:00"},
    },
    "parameters": {"a": [1.5, None, {"b": "\u00fc"}]},
    "empirical_policy": {"retries": 3, "pause_keys": ["a"]},
    "tags": ["a"],
    "labels": {"a": 1, "b": True},
    "idempotency_key": "k",
    "job_variables": {"cpu": 2},
}
VALID = json.dumps(REQUEST).encode()
OF_A_DEPLOYMENT = join({"type": short_string(FROM_DEPLOYMENT.type)})
SMALL = [each.body for each in CORPUS if len(each.body) < 5_000]

text = st.text(st.characters(), max_size=60)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | text
    | st.datetimes().map(str)
    | st.uuids().map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
header_name = st.sampled_from(
    [
        "x-prefect-api-version",
        "prefect-automation-id",
        "prefect-automation-name",
        "traceparent",
        "CC",
        "x-death",
        "x-error",
        "x-original-properties",
        "x-original-reply-to",
    ]
)
content_type = st.sampled_from(["application/json", "application/json; charset=utf-8"]).map(short_string)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid or a hostile body with some bytes changed, doubled, removed, or inserted from
    another.
    """
    body = bytearray(draw(st.sampled_from([VALID, *SMALL])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        to = min(len(body), at + draw(st.integers(0, 20)))
        kind = draw(st.sampled_from(["replace", "double", "splice"]))
        if kind == "replace":
            body[at:to] = draw(st.binary(max_size=8))
        elif kind == "double":
            body[at:at] = body[at:to] * draw(st.integers(1, 50))
        else:
            other = draw(st.sampled_from([VALID, *SMALL]))
            start = draw(st.integers(0, len(other)))
            body[at:to] = other[start : start + draw(st.integers(0, 200))]
    return bytes(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | mutated())
def test_any_bytes_end_in_a_record_or_a_refusal(body: bytes) -> None:
    serve(Message(body=body, headers={}))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(REQUEST)) | text, anything, max_size=6))
def test_any_fields_end_in_a_record_or_a_refusal(fields: dict[str, Any]) -> None:
    serve(Message(body=json.dumps({**REQUEST, **fields}).encode(), headers={}))


kinds = st.recursive(
    anything,
    lambda inner: (
        st.fixed_dictionaries(
            {"__prefect_kind": st.sampled_from(["none", "json", "jinja", "workspace_variable"]) | anything},
            optional={
                "value": inner | anything.map(json.dumps),
                "variable_name": inner | st.just("v"),
                "template": inner,
            },
        )
        | st.dictionaries(text, inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    parameters=st.dictionaries(st.sampled_from(["a", "n"]) | text, kinds, max_size=3) | kinds,
    fields=st.dictionaries(st.sampled_from(sorted(REQUEST)) | text, anything, max_size=3),
)
def test_any_run_of_a_deployment_ends_in_a_record_or_a_refusal(
    parameters: Any, fields: dict[str, Any]
) -> None:
    valid = {**REQUEST, "deployment_name": "flow/deployment", "parameters": parameters}
    del valid["flow_id"]
    for body in (valid, {**valid, **fields}):
        serve(read_message(OF_A_DEPLOYMENT, json.dumps(body).encode()))


@settings(max_examples=300, deadline=None)
@given(
    body=st.sampled_from([VALID, b"{}"]),
    properties=made.properties(
        headers=made.tables(header_name | made.header_names),
        strings=made.short_strings | made.no_utf8.map(made.counted) | content_type,
        times=st.integers(0, 2**64 - 1),
    ),
)
def test_any_properties_end_in_a_record_or_a_refusal(body: bytes, properties: bytes) -> None:
    serve(read_message(properties, body))


@settings(max_examples=300, deadline=None)
@given(flags=st.integers(0, 0xFFFF).map(lambda flags: flags & 0xFFFC), properties=st.binary(max_size=200))
def test_any_content_header_ends_in_a_record_or_a_refusal(flags: int, properties: bytes) -> None:
    serve(message_of(flags, properties, VALID))


@pytest.mark.parametrize("hostile", CORPUS, ids=lambda hostile: hostile.name)
def test_the_hostile_corpus_is_answered_in_bounded_size(hostile: Any) -> None:
    status = serve(Message(body=hostile.body, headers={}))
    if hostile.properties or hostile.raw or hostile.status == 409:
        return
    assert status == hostile.status


def calls(body: bytes) -> int:
    """The number of calls, of Python functions and of extensions, to serve it: a measure of work
    that a busy machine does not change.
    """
    count = 0

    def called(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    message = Message(body=body, headers={})
    sys.setprofile(called)
    try:
        serve(message)
    finally:
        sys.setprofile(None)
    return count


FLOW = FLOW_ID.encode()
WORST = {
    "tags that are none": lambda n: b'{"flow_id": "%s", "tags": [%s1]}' % (FLOW, b"1," * n),
    "labels that are none": lambda n: b'{"flow_id": "%s", "labels": {%s}}' % (FLOW, b",".join(b'"%x": []' % i for i in range(n))),
    "unknown fields": lambda n: b"{%s}" % b",".join(b'"%x": 1' % i for i in range(n)),
    "NULs": lambda n: b'{"flow_id": "%s", "context": {"a": [%s1]}}' % (FLOW, rb'"\u0000",' * n),
    "NUL behind many others": lambda n: b'{"flow_id": "%s", "context": {"a": [%s"\\u0000"]}}' % (FLOW, b'"a",' * n),
    "a byte order mark before many entries": lambda n: b'\xef\xbb\xbf{"flow_id": "%s", "context": {"a": [%s1]}}' % (FLOW, b"[]," * n),
    "tags": lambda n: b'{"flow_id": "%s", "tags": [%s"a"]}' % (FLOW, b'"a",' * n),
    "numbers beyond 64 bits": lambda n: b'{"flow_id": "%s", "parameters": {"a": [%s1]}}' % (FLOW, b"99999999999999999999," * n),
    "nesting": lambda n: b'{"flow_id": "%s", "context": {"a": %s1%s}}' % (FLOW, b"[" * min(n, 490), b"]" * min(n, 490)),
    "the same key": lambda n: b'{"flow_id": "%s", %s"name": "a"}' % (FLOW, b'"name": "b",' * n),
}  # fmt: skip


@pytest.mark.parametrize("worst", WORST)
def test_twice_the_request_is_at_most_twice_the_work(worst: str) -> None:
    few, many = calls(WORST[worst](5_000)), calls(WORST[worst](10_000))
    assert many <= 2.2 * few
