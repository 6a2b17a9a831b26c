"""The enumerated cases: every field, every state, and every kind of invalid input that Prefect's
endpoint distinguishes.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# Placeholder in bodies for an existing flow's id.
FLOW = "00000000-0000-4000-8000-00000000f10f"
OTHER = "6f9619ff-8b86-4d11-b42d-00cf4fc964ff"
STATES = (
    "SCHEDULED",
    "PENDING",
    "RUNNING",
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "CRASHED",
    "PAUSED",
    "CANCELLING",
)


@dataclass(frozen=True)
class Case:
    """A request; ``FLOW`` in it is replaced by an existing flow's id."""

    name: str
    raw: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def body(self, flow_id: str) -> bytes:
        """The bytes to send. Each notation of ``FLOW`` is replaced by the flow's id in the same
        notation.
        """
        return written_for(flow_id, self.raw, FLOW)


def written_for(flow_id: str, raw: bytes, instead_of: str) -> bytes:
    """The same bytes for another flow, with its id in the same notation."""
    for write in (str, str.upper, lambda text: text.replace("-", "")):
        raw = raw.replace(write(instead_of).encode(), write(flow_id).encode())
    return raw


def case(name: str, fields: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> Case:
    return Case(name, json.dumps({"flow_id": FLOW, **(fields or {})}).encode(), headers or {})


def _states() -> Iterator[Case]:
    for state in STATES:
        yield case(f"state {state}", {"state": {"type": state}})
        yield case(f"state {state}, named", {"state": {"type": state, "name": "Mine", "message": "why"}})
        details = {"scheduled_time": "2031-01-02T03:04:05.5+02:00", "pause_key": "k"}
        yield case(f"state {state}, with details", {"state": {"type": state, "state_details": details}})
        yield case(
            f"state {state}, keyed",
            {"idempotency_key": f"key-{state}", "state": {"type": state, "state_details": details}},
        )
    for details in (
        {"cache_key": "c"},
        {"cache_expiration": "2031-01-01T00:00:00Z"},
        {"deferred": True},
        {"deferred": None},
        {"untrackable_result": True},
        {"pause_timeout": "2031-01-01"},
        {"pause_reschedule": True},
        {"run_input_keyset": {"a": "b"}},
        {"run_input_keyset": {"a": 1}},
        {"refresh_cache": True},
        {"retriable": False},
        {"transition_id": OTHER},
        {"task_parameters_id": "no uuid"},
        {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        {"deployment_concurrency_lease_id": OTHER},
        {"flow_run_id": OTHER},
        {"task_run_id": OTHER},
        {"child_flow_run_id": OTHER},
        {"unknown": 1},
    ):
        yield case(f"state details {details}", {"state": {"type": "PAUSED", "state_details": details}})
    for time in (
        "2031-01-01", "2031-01-01T00:00:00", "2031-01-01 10:00", "2031-01-01T00:00:00.123456789Z", "20310101", "2031-W01", "12:00",
        "tomorrow", "", 5, 1.5e9, 10**20, True, None, [], {},
    ):  # fmt: skip
        yield case(
            f"scheduled_time {time!r}",
            {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": time}}},
        )
    for state in (
        None, "x", {}, [], {"type": "x"}, {"type": "pending"}, {"type": 1}, {"type": "PENDING", "extra": 1},
        {"type": "PENDING", "state_details": None}, {"type": "PENDING", "id": OTHER}, {"type": "PENDING", "name": ""},
        {"type": "PENDING", "name": 1}, {"type": "PENDING", "timestamp": "2020-01-01T00:00:00Z"}, {"type": "PENDING", "message": 1},
        {"type": "COMPLETED", "data": None}, {"type": "COMPLETED", "data": {"type": "unpersisted"}},
    ):  # fmt: skip
        yield case(f"state {state}", {"state": state})


def _fields() -> Iterator[Case]:
    values: dict[str, tuple[Any, ...]] = {
        "flow_id": ("x", 7, None, [], FLOW.upper(), FLOW.replace("-", ""), f"{{{FLOW}}}", True),
        "name": ("", None, 0, 5, "a name", "ü 🚀", " ", [], ["x"]),
        "flow_version": (1, "", None, "v"),
        "parameters": (
            [],
            None,
            "x",
            {},
            {"a": {"b": [1, None, 1.5, True]}},
            {"x": "y" * 600_000},
            {"": 1},
            {"big": 2**70},
        ),
        "context": (None, {}, {"a": 1}, 3),
        "tags": (None, "a", ["a", "a"], [1], [], ["b", "a"], [None]),
        "labels": (
            {"a": 1},
            {"a": 1.5},
            {"a": True},
            {"a": "s"},
            {"a": None},
            {"a": [1]},
            None,
            {},
            [],
            {"prefect.flow.id": "mine"},
        ),
        "idempotency_key": (1, None, "x y", "ü"),
        "work_pool_name": (1, None),
        "work_queue_name": ("q", 3, None),
        "job_variables": ({}, None, {"a": 1}, []),
        "deployment_id": ("x", OTHER, None),
        "parent_task_run_id": ("x", None),
        "infrastructure_document_id": ("x", None),
        "unknown": (1,),
        "id": (OTHER,),
        "state_type": ("PENDING",),
    }
    for name, each in values.items():
        for value in each:
            yield case(f"{name} {str(value)[:40]!r} ({type(value).__name__})", {name: value})
            if name != "idempotency_key":
                yield case(
                    f"{name} {str(value)[:40]!r} ({type(value).__name__}), keyed",
                    {"idempotency_key": f"{name}-{value!s:.20}", name: value},
                )
    for policy in (
        {"max_retries": 3}, {"retry_delay_seconds": 5}, {"retry_delay_seconds": 5.5}, {"retries": 2, "retry_delay": 1},
        {"retries": 0, "max_retries": 3}, {"max_retries": "4"}, {"resuming": True}, {"resuming": None}, {"pause_keys": ["a", "b", "a"]},
        {"pause_keys": None}, {"pause_keys": "a"}, {"retry_type": "x"}, {"retry_type": "in_process"}, {"retries": 1.5}, {"unknown": 1},
    ):  # fmt: skip
        for state in ("PENDING", "RUNNING", "COMPLETED"):
            yield case(f"policy {policy}, {state}", {"empirical_policy": policy, "state": {"type": state}})
    yield case(
        "several errors",
        {
            "flow_id": "x",
            "tags": 1,
            "state": {"type": "x"},
            "no_such_field": "red",
            "empirical_policy": {"retries": "x"},
        },
    )


def _headers() -> Iterator[Case]:
    for version in ("0.8.4", "0.8.0", "0.7.9", "3.0.0", "x", "1.2", "1.2.3.4", "", "1.2.x"):
        yield case(f"API version {version!r}", headers={"x-prefect-api-version": version})
    resuming = {"empirical_policy": {"resuming": True}, "state": {"type": "RUNNING"}}
    for version in ("0.8.3", "0.8.4"):
        yield case(f"resuming by API version {version}", resuming, {"x-prefect-api-version": version})
    name = base64.b64encode("Nightly ü".encode()).decode()
    for automation, encoded in (
        (OTHER, name),
        (OTHER, "%%%"),
        ("no uuid", name),
        (OTHER, None),
        (None, name),
        (OTHER, ""),
    ):
        headers = {"prefect-automation-id": automation, "prefect-automation-name": encoded}
        yield case(
            f"automation {automation} {encoded}", headers={k: v for k, v in headers.items() if v is not None}
        )


def _raw() -> Iterator[Case]:
    flow = FLOW.encode()
    for raw in (
        b"", b"{nope", b"[]", b"null", b"1", b'"x"', b"{}", b'{"flow_id":', b"\xff", b"[1,2", b"{'a':1}", b"[" * 2_000,
        b'{"flow_id":"%s"} x' % flow, b'{"flow_id":"x","flow_id":"%s"}' % flow, b'\xef\xbb\xbf{"flow_id":"%s"}' % flow,
        b'{"flow_id":"%s","parameters":{"a":NaN,"b":Infinity,"c":-Infinity,"d":1e999}}' % flow,
        b'{"flow_id":"%s","idempotency_key":"nan","parameters":{"a":NaN,"d":1e999}}' % flow,
        b'{"flow_id":"%s","parameters":{"a":"\\ud83d\\ude80"}}' % flow, b'{"flow_id":"%s","parameters":{"a":1E5,"b":-0.0,"c":1.0}}' % flow,
        b'{"flow_id":"%s",}' % flow, b'{"flow_id":"%s" "name":1}' % flow, b' \n{"flow_id":"%s"}\n ' % flow,
        b'{"flow_id":"%s","name":"a\tb"}' % flow, "{}".encode("utf-16"),
    ):  # fmt: skip
        yield Case(f"raw {raw[:40]!r}", raw)


CASES = [case("minimal"), *_states(), *_fields(), *_headers(), *_raw()]

# Inputs on which Prefect answers 5xx or breaks the connection, and our answer.
BROKEN_AT_PREFECT: list[tuple[Case, int]] = [
    *((case(f"state data {data!r}", {"state": {"type": "COMPLETED", "data": data}}), 201) for data in ("text", 0, 1, [], {}, {"a": 1}, True)),
    *((case(f"policy {policy!r}", {"empirical_policy": policy}), 422) for policy in ([], None, "x")),
    (case("API version '1.-2.3'", headers={"x-prefect-api-version": "1.-2.3"}), 400),
    (Case("NUL in the name", b'{"flow_id":"%s","name":"a\\u0000"}' % FLOW.encode()), 422),
    (Case("half a surrogate pair", b'{"flow_id":"%s","name":"a\\ud800"}' % FLOW.encode()), 422),
    (case("scheduled before year 1 in UTC", {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "0001-01-01T00:00:00+02:00"}}}), 422),
    (case("scheduled after year 9999 in UTC", {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "9999-12-31T23:59:59-02:00"}}}), 422),
]  # fmt: skip
