"""For any bytes and headers, decoding ends in a request or in a refusal, never in another
exception.
"""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.contract.decode import decode, may_describe
from worker.contract.errors import Refusal, encode_error
from worker.contract.message import Message
from worker.contract.plain import PlainMessages
from worker.contract.request import MAX_PARAMETER_SIZE, CreateFlowRun

FLOW = "11111111-1111-4111-8111-111111111111"

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(
    [
        "state",
        "name",
        "flow_id",
        "parameters",
        "context",
        "empirical_policy",
        "tags",
        "labels",
        "idempotency_key",
        "unknown",
    ]
)


def refusal(body: bytes, **properties: Any) -> Refusal:
    with pytest.raises(Refusal) as raised:
        decode(Message(body=body, headers={}, **properties), max_body_bytes=20_000_000)
    return raised.value


def ends_well(message: Message, plain: PlainMessages | None = None) -> None:
    """Any other exception fails the test, and so does a refusal that can't be encoded."""
    refused: Refusal | None = None
    try:
        decode(message, max_body_bytes=100_000, plain=plain)
    except Refusal as refusal:
        refused = refusal
    assert refused is None or len(encode_error(refused, 10_000)) <= 10_000


@settings(max_examples=150, deadline=None)
@given(st.binary() | anything.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_a_request_or_a_refusal(body: bytes) -> None:
    ends_well(Message(body=body, headers={}))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(fields, anything))
def test_any_field_is_a_request_or_a_refusal(values: dict[str, Any]) -> None:
    ends_well(Message(body=json.dumps({"flow_id": FLOW, **values}).encode(), headers={}))


@pytest.mark.parametrize(
    "name", ["x-prefect-api-version", "prefect-automation-id", "prefect-automation-name", "traceparent"]
)
@pytest.mark.parametrize(
    "value", [b"\xff", b"", "", 1, 1.5, True, None, [], {}, ["a"], "\0", "\ud800", "9" * 5000]
)
def test_any_header_is_a_request_or_a_refusal(name: str, value: Any) -> None:
    headers = {"prefect-automation-id": FLOW, "prefect-automation-name": "YQ==", name: value}
    ends_well(Message(body=json.dumps({"flow_id": FLOW}).encode(), headers=headers))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"null", 422),
        (b"\xff\xfe{}", 422),
        (b"\xff", 400),
        (b"[" * 5_000_000, 400),
        (b"[" * 5_000_000 + b"]" * 5_000_000, 400),
        (b'{"flow_id":' + b"9" * 5000 + b"}", 400),
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes, status: int) -> None:
    refused = refusal(body)
    assert refused.status == status
    assert json.loads(encode_error(refused, 1_000_000))


@pytest.mark.parametrize(("name", "escaped"), [("a\0b", True), ("a\ud800b", True), ("a\ud800b", False)])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_unstorable_text_is_refused_in_every_encoding(name: str, encoding: str, escaped: bool) -> None:
    text = json.dumps({"flow_id": FLOW, "name": name}, ensure_ascii=escaped)
    detail = refusal(text.encode(encoding, "surrogatepass")).body["exception_detail"]
    assert [(each["type"], each["loc"]) for each in detail] == [("string_unicode", ["body", "name"])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_storable_text_is_taken_in_every_encoding(encoding: str) -> None:
    body = json.dumps({"flow_id": FLOW, "name": "\ud7a3 \U0001f680"}, ensure_ascii=False).encode(encoding)
    request = decode(Message(body=body, headers={}), max_body_bytes=1000)
    assert request.body.name == "\ud7a3 \U0001f680"


@pytest.mark.parametrize(("limit", "taken"), [(1_000, False), (1_015, False), (1_016, True), (0, True)])
def test_parameters_are_measured_against_the_limit_that_is_set(limit: int, taken: bool) -> None:
    """Counted as Python encodes it, with six bytes for a character beyond ASCII."""
    body = json.dumps({"flow_id": FLOW, "parameters": {"a": "é" * 167, "b": 1}}, ensure_ascii=False)
    message = Message(body=body.encode(), headers={})
    if taken:
        assert decode(message, max_body_bytes=2_000, max_parameter_size=limit)
        return
    with pytest.raises(Refusal) as refused:
        decode(message, max_body_bytes=2_000, max_parameter_size=limit)
    (detail,) = refused.value.body["exception_detail"]
    assert f"less than {limit:,} bytes when serialized (got " in detail["msg"]


def test_a_limit_that_is_not_set_is_prefects() -> None:
    exact = MAX_PARAMETER_SIZE - len('{"a":""}')
    for size, errors in ((exact, 0), (exact + 1, 1)):
        body = {"flow_id": FLOW, "parameters": {"a": "x" * size}}
        if errors:
            assert refusal(json.dumps(body).encode()).status == 422
            with pytest.raises(ValidationError):
                CreateFlowRun.model_validate(body)
        else:
            assert decode(Message(json.dumps(body).encode(), {}), max_body_bytes=1_000_000)
            assert CreateFlowRun.model_validate(body)


@pytest.mark.parametrize(
    "encoding",
    [None, "", "utf-8", "utf8", "identity", "binary", "UTF-8", "Utf8", "IDENTITY", "Binary"],
)
@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "Application/JSON",
        " application/json ; charset=UTF-8",
        "application/json;charset=utf8",
        "application/json; charset=latin-1",
        'application/json; version="1.0"; profile=x',
        "application/json;",
        "application/vnd.orders+json",
        "application/cloudevents+JSON; charset=utf-8",
    ],
)
def test_what_producers_call_plain_json_is_taken(encoding: str | None, content_type: str | None) -> None:
    """Kombu, Spring AMQP and others use these labels. FastAPI accepts them, and so do we."""
    body = json.dumps({"flow_id": FLOW, "name": "ü"}, ensure_ascii=False).encode()
    message = Message(body, {}, content_encoding=encoding, content_type=content_type)
    assert decode(message, max_body_bytes=1000).body.name == "ü"


@pytest.mark.parametrize(
    "properties",
    [
        {"content_encoding": "gzip"},
        {"content_encoding": "deflate"},
        {"content_encoding": "utf-16"},
        {"content_encoding": "latin-1"},
        {"content_encoding": "base64"},
        {"content_type": "text/json"},
        {"content_type": "text/plain"},
        {"content_type": "application/octet-stream"},
        {"content_type": "application/x-python-serialize"},
        {"content_type": "application/json-seq"},
        {"content_type": "application/jsonl"},
        {"content_type": "application/json/json"},
        {"content_type": "application"},
        {"content_type": "json"},
        {"content_type": "; charset=utf-8"},
        {"content_type": "application/json, text/plain"},
    ],
)
def test_what_is_called_something_else_is_refused(properties: dict[str, str]) -> None:
    assert refusal(json.dumps({"flow_id": FLOW}).encode(), **properties).status == 415


@pytest.mark.parametrize(("body", "status"), [(b"\x1f\x8b\x08\x00", 415), (b"{}", 422)])
def test_a_body_that_kombu_compressed_is_refused_as_that(body: bytes, status: int) -> None:
    """A header names the compression; the header is ignored if the body is readable."""
    with pytest.raises(Refusal) as raised:
        decode(Message(body, {"compression": "application/x-gzip"}), max_body_bytes=1000)
    assert raised.value.status == status


NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"]


@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize(
    ("field", "place"),
    [
        ('"labels": {"of": %s}', ["labels", "of"]),
        ('"labels": {"float": %s}', ["labels", "float"]),
        (
            '"empirical_policy": {"retry_delay_seconds": %s, "retry_delay": 1}',
            ["empirical_policy", "retry_delay_seconds"],
        ),
        (
            '"empirical_policy": {"retry_delay_seconds": "%s", "retry_delay": 1}',
            ["empirical_policy", "retry_delay_seconds"],
        ),
        ('"empirical_policy": {"retries": %s}', ["empirical_policy", "retries"]),
    ],
)
def test_a_number_that_is_none_is_refused_at_its_place(field: str, place: list[str], number: str) -> None:
    """Prefect stores null for it, and its lists of runs answer 500 from then on."""
    body = f'{{"flow_id": "{FLOW}", {field % number}}}'.encode()
    detail = refusal(body).body["exception_detail"]
    assert [(each["type"], each["loc"]) for each in detail] == [("finite_number", ["body", *place])]


def test_each_label_that_is_no_number_has_its_error_and_others_have_theirs() -> None:
    body = f'{{"flow_id": "{FLOW}", "labels": {{"a": NaN, "b": [], "c": 1.5, "d": Infinity}}}}'
    refused = refusal(body.encode())
    assert refused.line == "body.labels.a: Input should be a finite number (and 5 more)"
    assert [each["loc"][2:] for each in refused.body["exception_detail"]] == [
        ["a"],
        ["b", "bool"],
        ["b", "int"],
        ["b", "float"],
        ["b", "str"],
        ["d"],
    ]
    assert json.loads(encode_error(refused, 10_000))["exception_detail"][0]["input"] is None


@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize("field", ['"parameters"', '"context"', '"job_variables"'])
def test_where_any_json_may_stand_such_a_number_may(field: str, number: str) -> None:
    """As in Prefect, whose column type stores null for it (``JSON.process_bind_param``)."""
    body = f'{{"flow_id": "{FLOW}", {field}: {{"a": {number}}}}}'.encode()
    assert decode(Message(body, {}), max_body_bytes=1000)


@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize("field", ["scheduled_time", "cache_expiration", "deferred", "run_input_keyset"])
def test_no_other_field_takes_such_a_number(field: str, number: str) -> None:
    details = f'{{"type": "SCHEDULED", "state_details": {{"{field}": {number}}}}}'
    body = f'{{"flow_id": "{FLOW}", "state": {details}}}'.encode()
    (detail,) = refusal(body).body["exception_detail"]
    assert detail["loc"] == ["body", "state", "state_details", field]


@pytest.mark.parametrize("body", [b"[" * 1000, b'{"flow_id": 1', b'{"flow_id": 1}'])
def test_a_refusal_that_is_freed_holds_no_frame(body: bytes) -> None:
    with pytest.raises(Refusal) as raised:
        decode(Message(body, {}), max_body_bytes=1_000_000)
    refusal = raised.value.freed()
    assert (refusal.__traceback__, refusal.__context__, refusal.__cause__) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ('{"a": {"__prefect_kind": "none"}}', True),
        (r'{"a": {"\u005f_prefect_kind": "none"}}', True),
        (r'{"a": {"__prefect_k\u0069nd": "none"}}', True),
        (r'{"a": {"__prefect_\u006Bind": "none"}}', True),
        (r'{"a": "\u00e9\n"}', False),
        ('{"a": {"_prefect_kind": "none"}}', False),
    ],
)
def test_a_described_value_is_found_in_the_text(text: str, may: bool) -> None:
    assert may_describe(text) is may_describe(text.encode()) is may


def test_a_run_of_a_deployment_without_its_type_is_told_so() -> None:
    body = json.dumps({"deployment_name": "flow/deployment"}).encode()
    with pytest.raises(Refusal, match=r"body\.flow_id: Field required") as refused:
        decode(Message(body, {}), max_body_bytes=1_000_000)
    assert refused.value.line.startswith(
        "A request for a run of a deployment needs the type 'create_flow_run_from_deployment' (body."
    )
