"""Odd requests that look right, and whether Prefect can handle the run of each."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from string import ascii_letters, digits
from typing import Any
from uuid import UUID

_AUTOMATION = {
    "prefect-automation-id": "6f9619ff-8b86-4d11-b42d-00cf4fc964ff",
    "prefect-automation-name": "YQ==",
}


@dataclass(frozen=True)
class Odd:
    """A request for a run of a deployment with a work pool.

    Attributes:
        fields: of the request, besides those that name flow, deployment and work pool.
        usable: whether Prefect can handle the run. If not, we make none.
        raw: further fields, as JSON that ``json.dumps`` would not write.
        flow: fields of the flow.
        deployment: fields of the deployment.
        parent: fields of the parent task run; None for none.
        typed: whether the deployment's own endpoint is asked.
        stored: whether PostgreSQL stores its times and its events unchanged.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    usable: bool = True
    raw: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    flow: dict[str, Any] = field(default_factory=dict)
    deployment: dict[str, Any] = field(default_factory=dict)
    parent: dict[str, Any] | None = None
    typed: bool = False
    stored: bool = True

    def body(self, **references: Any) -> bytes:
        """The request, with the ids of an existing flow, deployment and work pool."""
        body = json.dumps({**references, **self.fields})
        return (f"{body[:-1]},{self.raw}}}" if self.raw else body).encode()


def nested(levels: int, innermost: Any = 1) -> Any:
    """Lists nested to this many levels. The innermost has the value."""
    value = innermost
    for _ in range(levels):
        value = [value]
    return value


def tags(count: int, prefix: str = "tag") -> list[str]:
    return [f"{prefix}-{number:03}" for number in range(count)]


def _scheduled(**fields: Any) -> dict[str, Any]:
    return {"state": {"type": "SCHEDULED", **fields}}


def _deep() -> Iterator[Odd]:
    for column in ("parameters", "context", "job_variables"):
        yield Odd(f"{column} of 251 levels", {column: {"a": nested(250)}})
        yield Odd(f"{column} of 252 levels", {column: {"a": nested(251)}}, usable=False)
    yield Odd("parameters of 252 levels, the last one empty", {"parameters": {"a": nested(250, [])}})
    yield Odd("parameters of 500 levels", {"parameters": {"a": nested(497)}}, usable=False)
    yield Odd("251 levels and a large number", {"parameters": {"a": nested(250, 2**70)}})
    yield Odd("252 levels and a large number", {"parameters": {"a": nested(251, 2**70)}}, usable=False)
    yield Odd("data of 250 levels", _scheduled(data=nested(250)))
    yield Odd("data of 251 levels", _scheduled(data=nested(251)), usable=False)
    yield Odd(
        "300 levels in what is passed over",
        _scheduled(state_details={"unknown": nested(300)}) | {"empirical_policy": {"unknown": nested(300)}},
    )
    own = {"parameters": {"own": nested(230)}}
    yield Odd("parameters of a deployment, deep", {"parameters": {"a": 1}}, deployment=own, typed=True)
    for levels, usable in ((250, True), (251, False)):
        text = json.dumps(nested(levels))
        parameters = {"a": {"__prefect_kind": "json", "value": text}}
        yield Odd(
            f"{levels + 1} levels in a text", {"parameters": parameters}, usable, deployment=own, typed=True
        )


def _tagged() -> Iterator[Odd]:
    # An event names flow, deployment, work queue and work pool.
    yield Odd("96 tags", {"tags": tags(96)})
    yield Odd("97 tags", {"tags": tags(97)}, usable=False)
    yield Odd("96 tags, each twice", {"tags": tags(96) * 2})
    yield Odd("96 tags, three of another", {"tags": tags(46)}, flow={"tags": tags(50, "flow")})
    yield Odd("97 tags with the flow's", {"tags": tags(46)}, usable=False, flow={"tags": tags(51, "flow")})
    of_deployment = {"tags": tags(50, "deployment")}
    yield Odd("96 tags with the deployment's", {"tags": tags(46)}, deployment=of_deployment)
    yield Odd("97 tags with the deployment's", {"tags": tags(47)}, usable=False, deployment=of_deployment)
    yield Odd("the deployment's tags again", {"tags": tags(90)}, deployment={"tags": tags(90)})
    yield Odd("96 tags, by the deployment", {"tags": tags(46)}, deployment=of_deployment, typed=True)
    yield Odd("97 tags, by the deployment", {"tags": tags(47)}, False, deployment=of_deployment, typed=True)
    yield Odd(
        "97 tags, by the deployment, in a queue that is new",
        {"tags": tags(47), "work_queue_name": "new"},
        usable=False,
        deployment=of_deployment,
        typed=True,
    )
    of_parent = {"tags": tags(50, "parent")}
    yield Odd("95 tags with the parent's", {"tags": tags(45)}, parent=of_parent)
    yield Odd("96 tags with the parent's, and the parent", {"tags": tags(46)}, usable=False, parent=of_parent)
    yield Odd("95 tags, by an automation", {"tags": tags(95)}, headers=_AUTOMATION)
    yield Odd("96 tags, by an automation", {"tags": tags(96)}, usable=False, headers=_AUTOMATION)


def noise(count: int, alphabet: str = ascii_letters + digits) -> str:
    """Text that does not compress."""
    return "".join(random.Random(7).choices(alphabet, k=count))


def _long() -> Iterator[Odd]:
    ideographs = "".join(map(chr, range(0x4E00, 0x9FA5)))
    yield Odd("a tag of 2,500 bytes", {"tags": [noise(2500)]})
    yield Odd("a tag of 2,800 bytes", {"tags": [noise(2800)]}, usable=False, stored=False)
    yield Odd("a state's name of 2,499 bytes", _scheduled(name=noise(833, ideographs)))


def _results() -> Iterator[Odd]:
    stored = {"storage_key": "a", "expiration": None, "storage_block_id": str(UUID(int=7))}
    pickle = {"type": "pickle", "picklelib": "cloudpickle", "picklelib_version": None}
    for what, data in {
        "whose serializer pickles": {**stored, "serializer": pickle, "prefect_version": "3.9.1"},
        "whose serializer writes JSON": {**stored, "serializer": {"type": "json"}},
        "whose serializer compresses": {**stored, "serializer": {"type": "compressed/pickle"}},
        "without a serializer": stored,
        "of a key alone": {"storage_key": None},
    }.items():
        yield Odd(f"a result {what}", _scheduled(data=data))
    for what, data in {
        "whose key is a number": {"storage_key": 1},
        "that expires at no time": {"storage_key": "a", "expiration": "x"},
        "in no block": {"storage_key": "a", "storage_block_id": "x"},
        "without a version": {"storage_key": "a", "prefect_version": None},
        "whose serializer is a text": {"storage_key": "a", "serializer": "json"},
        "whose serializer is null": {"storage_key": "a", "serializer": None},
        "whose serializer has more": {"storage_key": "a", "serializer": {"type": "json", "x": 1}},
        "whose serializer is nowhere": {
            "storage_key": "a",
            "serializer": {"type": "pickle", "picklelib": "no.such"},
        },
    }.items():
        yield Odd(f"a result {what}", _scheduled(data=data), usable=False)
    for other in ({"type": "reference"}, {"type": 1}, {"serializer": 1}, [{"storage_key": 1}], "", 0, False):
        yield Odd(f"data {other}", _scheduled(data=other))
    yield Odd("data of a MB", _scheduled(data="a" * 900_000))


_COLUMNS = ("parameters", "context", "job_variables")
_TEXTS = (
    " ",
    "\x01\x1b[31m",
    "🚀",
    "a/b/c",
    "\u202e",
    "a\nb\r",
    "..",
    "%00",
    "{{ name }}",
    "'\"",
    "x" * 1007,
)


def _values() -> Iterator[Odd]:
    """Several harmless oddities in one run."""
    whole = [2**63, -(2**63) - 1, 2**64, 10**300, 10**4299]
    yield Odd("large numbers", {column: {"a": whole} for column in _COLUMNS})
    fractions = ("1e400", "-0.0", "1e-400", "1.7976931348623157e308", "1E22", "0.1" + "0" * 400)
    columns = (f'"{column}": {{"a": [{", ".join(fractions)}]}}' for column in _COLUMNS)
    yield Odd("odd fractions", raw=", ".join(columns))
    labels = (1.5, 2**63, 2**70, -0.0, 1e308, True, "x" * 300_000)
    yield Odd("odd labels", {"labels": {f"{number}": value for number, value in enumerate(labels)}})
    first = {"scheduled_time": "0001-01-01T00:00:00Z"}
    yield Odd("the first instant", _scheduled(state_details=first), usable=False, stored=False)
    for time in (
        "0001-01-01T00:00:00.000001Z",
        "1000-01-01T00:00:00+14:00",
        "2024-01-01T00:00:00-12:34",
        "2262-04-12T00:00:00Z",
        "9999-12-31T23:59:59.999999Z",
    ):
        times = dict.fromkeys(("scheduled_time", "pause_timeout", "cache_expiration"), time)
        yield Odd(f"times of {time}", _scheduled(state_details=times))


def _texts() -> Iterator[Odd]:
    for text in _TEXTS:
        fields = dict.fromkeys(("name", "flow_version", "idempotency_key"), text)
        keys = {name: {text: text} for name in (*_COLUMNS, "labels")}
        state = _scheduled(name=text, message=text)
        yield Odd(f"the text {text[:9]!r}", {**fields, **keys, **state, "tags": [text, ""]})
    for name in ("", "Late", "AwaitingRetry", "Paused"):
        yield Odd(f"the state {name!r}", _scheduled(name=name))
    yield Odd("long texts", {"name": "a" * 10_000, **_scheduled(message="x" * 500_000)})


def _others() -> Iterator[Odd]:
    for policy in (
        {"retries": 2**70, "retry_delay": -5, "pause_keys": ["", "k" * 10_000]},
        {"retries": -1, "retry_delay": 2**63, "resuming": True},
        {"max_retries": 10**9, "retry_delay_seconds": 1e15},
    ):
        yield Odd(f"the policy {str(policy)[:50]}", {"empirical_policy": policy})
    elsewhere = "6f9619ff-8b86-4d11-b42d-00cf4fc964ff"
    details = {
        "run_input_keyset": {"": ""},
        "traceparent": "none",
        "pause_reschedule": True,
        "pause_key": "x" * 300_000,
        "flow_run_id": elsewhere,
        "child_flow_run_id": elsewhere,
        "deployment_concurrency_lease_id": elsewhere,
    }
    yield Odd("odd details", _scheduled(state_details=details))
    kinds = {"a": {"__prefect_kind": "json", "value": "["}, "__prefect_kind": "workspace_variable"}
    many = {f"{number}": number for number in range(20_000)}
    yield Odd("odd parameters", {"parameters": {**kinds, **many}})
    for variables in ({"command": {"x": 1}, "x": "{{ prefect.variables.none }}", "$ref": "#/x"}, None):
        yield Odd(f"the job variables {variables}", {"job_variables": variables})
    for queue in ("..", "a?b#c", "🚀 \x01"):
        yield Odd(f"the new queue {queue!r}", {"work_queue_name": queue}, typed=True)
    for kind in ("RUNNING", "COMPLETED", "CANCELLING", "PAUSED"):
        yield Odd(f"a parent that is {kind}", parent={"state": {"type": kind}})


ODD: dict[str, tuple[Odd, ...]] = {
    "deep": tuple(_deep()),
    "tagged": tuple(_tagged()),
    "long": tuple(_long()),
    "results": tuple(_results()),
    "numbers and times": tuple(_values()),
    "texts": tuple(_texts()),
    "others": tuple(_others()),
}
