"""The enumerated cases of runs of deployments: the assertions of Prefect's own tests of the
endpoint, every field, and every check that it makes.
"""

from dataclasses import dataclass, field
from typing import Any

from tests.conformance.cases import OTHER, STATES

PERSON = {
    "type": "object",
    "required": ["person"],
    "properties": {
        "name": {"type": "string", "default": "world", "position": 1},
        "person": {"allOf": [{"$ref": "#/definitions/Person"}], "position": 0},
    },
    "definitions": {
        "Person": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}, "greeting": {"type": "string", "default": "Hello"}},
        }
    },
}
# As Pydantic 1 wrote them: the types lack null, and items is a list.
OLD = {
    "type": "object",
    "properties": {
        "maybe": {"type": "integer"},
        "pair": {"type": "array", "items": [{"type": "integer"}, {"type": "string"}]},
        "with_default": {"type": "integer", "default": 1},
        "inner": {"type": "object", "properties": {"maybe": {"type": "string"}}},
        "when": {"type": "string", "format": "date"},
        "block": {"$ref": "#/definitions/Block"},
    },
    "definitions": {
        "Block": {
            "title": "Block",
            "type": "object",
            "block_type_slug": "json",
            "properties": {"value": {"type": "integer"}},
            "required": ["value"],
        }
    },
}
TEXT = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}
CIRCULAR = {
    "type": "object",
    "properties": {"x": {"$ref": "#/definitions/A"}},
    "definitions": {"A": {"allOf": [{"$ref": "#/definitions/A"}]}},
}
ELSEWHERE = {"type": "object", "properties": {"x": {"$ref": "https://example.com/no.json"}}}

TEMPLATE = {
    "job_configuration": {"command": "{{ command }}", "image": "{{ image }}"},
    "variables": {
        "type": "object",
        "required": ["image"],
        "properties": {
            "image": {"type": "string"},
            "command": {"type": "string", "default": "run"},
            "replicas": {"type": "integer", "default": 1},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "when": {"type": "string", "format": "date"},
        },
    },
}
WITHOUT_VARIABLES = {"job_configuration": {"command": "run"}}
BAD_DEFAULT = {
    **TEMPLATE,
    "variables": {
        "type": "object",
        "required": ["image", "replicas"],
        "properties": {"image": {"type": "string"}, "replicas": {"type": "integer", "default": "many"}},
    },
}
NO_SCHEMA = {**TEMPLATE, "variables": {"type": "nothing", "properties": {}}}
MISSING_BLOCK = {
    **TEMPLATE,
    "variables": {
        "type": "object",
        "properties": {"image": {"type": "string", "default": {"$ref": {"block_document_id": OTHER}}}},
    },
}
NO_BLOCK_ID = {
    **TEMPLATE,
    "variables": {
        "type": "object",
        "properties": {"image": {"type": "string", "default": {"$ref": {"block_document_id": "x"}}}},
    },
}
HALF_A_REFERENCE = {
    **TEMPLATE,
    "variables": {"type": "object", "properties": {"image": {"default": {"$ref": {}}}}},
}


@dataclass(frozen=True)
class Setup:
    """A deployment, made by Prefect's API.

    Schema and template are written into the database, since the API refuses some of them.

    Attributes:
        fields: of the deployment.
        template: of its work pool; without one there is no work pool.
        schema: of its parameters; None for no schema.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    template: dict[str, Any] | None = None
    schema: Any = field(default_factory=dict)


SETUPS = {
    "bare": Setup({"enforce_parameter_schema": False}),
    "full": Setup(
        {
            "version": "1.0",
            "tags": ["b", "a"],
            "labels": {"team": "blue", "tier": 1, "prefect.flow.id": "mine"},
            "parameters": {"foo": "bar", "deep": {"a": 1, "b": 2}},
            "job_variables": {"image": "busybox", "labels": {"a": "b"}},
            "work_queue_name": "wq-test",
            "enforce_parameter_schema": False,
        },
        TEMPLATE,
    ),
    "schema": Setup({"enforce_parameter_schema": True}, schema=TEXT),
    "person": Setup({"enforce_parameter_schema": True}, schema=PERSON),
    "old": Setup({"enforce_parameter_schema": True}, schema=OLD),
    "empty": Setup({"enforce_parameter_schema": True}, schema={}),
    "circular": Setup({"enforce_parameter_schema": False}, schema=CIRCULAR),
    "elsewhere": Setup({"enforce_parameter_schema": False}, schema=ELSEWHERE),
    "no schema": Setup({"enforce_parameter_schema": False}, schema=None),
    "required": Setup({"enforce_parameter_schema": False}, TEMPLATE),
    "without variables": Setup({"job_variables": {"anything": 1}}, WITHOUT_VARIABLES),
    "no template": Setup({"job_variables": {"anything": 1}}, {}),
    "bad default": Setup({}, BAD_DEFAULT),
    "no job schema": Setup({}, NO_SCHEMA),
    "missing block": Setup({}, MISSING_BLOCK),
    "no block id": Setup({}, NO_BLOCK_ID),
    "half a reference": Setup({}, HALF_A_REFERENCE),
    "not a schema": Setup({"enforce_parameter_schema": False}, schema={"type": "nothing"}),
    "circular job schema": Setup({}, {"variables": CIRCULAR}),
}
VARIABLES: dict[str, Any] = {
    "text": "string-value",
    "quoted": '"string-value"',
    "number": 123,
    "fraction": 12.3,
    "true": True,
    "false": False,
    "null": None,
    "object": {"key": "value"},
    "list": ["value1", "value2"],
    "deep": {"key": ["value1", "value2"]},
    "name": "number",
    "kind": {"__prefect_kind": "json", "value": "1"},
}


def kind(name: Any, **fields: Any) -> dict[str, Any]:
    return {"__prefect_kind": name, **fields}


def variable(name: Any) -> dict[str, Any]:
    return kind("workspace_variable", variable_name=name)


_PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "full": [
        {},
        {"foo": "not_bar"},
        {"other": 1},
        {"deep": {"a": 3}},
        {"foo": None},
        {"param1": 1, "param2": 2},
        {"big": 2**70, "none": None, "nested": [[{}]]},
    ],
    "schema": [
        {"x": 1},
        {"x": "y"},
        {},
        {"x": "y", "z": 1},
        {"x": None},
        {"x": kind("json", value='"text"')},
        {"x": kind("json", value="5")},
        {"x": kind("json", value='{"invalid": json}')},
        {"x": kind("json")},
        {"x": variable("text")},
        {"x": variable("number")},
    ],
    "person": [
        {"person": {"greeting": "*half hearted wave*"}},
        {"person": {"name": "Ford"}},
        {"person": "Ford"},
        {"name": 1, "person": {"name": 2}},
        {},
    ],
    "old": [
        {"maybe": None},
        {"maybe": "x"},
        {"maybe": True},
        {"maybe": 1.0},
        {"with_default": None},
        {"pair": [1, "a"]},
        {"pair": ["a", 1]},
        {"pair": [1]},
        {"inner": {"maybe": None}},
        {"inner": {"maybe": 1}},
        {"when": "not a date"},
        {"block": {"value": 1}},
        {"block": {"value": "x"}},
        {"block": {"$ref": "no uuid"}},
        {"block": {"$ref": {"block_document_id": OTHER}}},
        {"block": {"$ref": 1}},
        {"block": {}},
    ],
    "bare": [
        {"param": kind("none", value=5)},
        {"param": kind("none", value=kind("json", value="[1]"))},
        {"param": kind("none")},
        {"param": kind("json", value='"str_of_json"')},
        {"param": kind("json", value='[1, {"a": null}]')},
        {"param": kind("json", value=7)},
        {"param": kind("json", value=[kind("json", value="1")])},
        {"param": kind("json", value=variable("quoted"))},
        {"param": kind("json", value=variable("missing"))},
        {"param": kind("json", value=kind("json"))},
        {"param": kind("json", value="")},
        {"param": kind("json", value="nul")},
        {"param": kind("json", value="[1,]")},
        {"param": kind("json", value='{"a": 1} x')},
        {"param": kind("json", value="{'a': 1}")},
        {"param": kind("json"), "other": [1, kind("json"), kind("workspace_variable"), 2]},
        *({"param": variable(name)} for name in VARIABLES),
        {"param": variable("missing")},
        {"param": variable(7)},
        {"param": variable(None)},
        {"param": variable(variable("name"))},
        {"param": variable(kind("json", value='"number"'))},
        {"param": variable(kind("json"))},
        {"param": variable("text"), "more": {"deep": [variable("list"), variable("number")]}},
        {"param": kind("workspace_variable")},
        {"param": kind("unknown", value=1)},
        {"param": kind("unknown")},
        {"param": kind(None, value=1)},
        {"param": kind(7, value=1)},
        {"param": kind("jinja")},
        {"param": kind("jinja", template="plain text")},
        {"param": kind("jinja", template=kind("json", value='"plain text"'))},
        {"param": kind("jinja", template=kind("json"))},
        kind("json"),
        kind("workspace_variable"),
        kind("none", value={"a": 1}),
        kind("json", value='{"a": 1}'),
    ],
    "empty": [{}, {"x": 1}],
    "circular": [{"x": 1}],
    "elsewhere": [{"x": 1}],
    "no schema": [{"x": 1}],
}
_JOB_VARIABLES: dict[str, list[Any]] = {
    "full": [{"replicas": 2}, {"image": 5}, {"image": None}, {"replicas": None}, {"replicas": "two"}, {"foo": "bar"}, None, {},
             {"labels": {"a": 1}}, {"labels": {}}, {"when": "no date"}],
    "required": [{}, None, {"image": "busybox"}, {"image": ""}, {"command": None}, {"command": 1, "image": "x"}],
    "bare": [{"foo": "bar"}, None],
    "without variables": [{}, {"x": 1}],
    "no template": [{}, {"x": 1}],
    "bad default": [{}, {"image": "x"}, {"image": 1}, {"replicas": 3}, {"replicas": "x"}],
    "no job schema": [{}, {"x": 1}],
    "missing block": [{}, {"image": "x"}],
    "no block id": [{}],
    "half a reference": [{}, {"image": 1}],
}  # fmt: skip


@dataclass(frozen=True)
class DeploymentCase:
    """A request for a run of a deployment."""

    setup: str
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.setup}: {self.body} {self.headers or ''}"[:300]


def _cases() -> list[DeploymentCase]:
    cases = [DeploymentCase(setup, {}) for setup in SETUPS if setup != "circular job schema"]
    for setup, each in _PARAMETERS.items():
        for parameters in each:
            cases.append(DeploymentCase(setup, {"parameters": parameters}))
            for enforced in (True, False, None):
                if setup in ("schema", "circular", "elsewhere", "no schema", "full"):
                    flag = {"enforce_parameter_schema": enforced}
                    cases.append(DeploymentCase(setup, {"parameters": parameters, **flag}))
    for setup, variables in _JOB_VARIABLES.items():
        for value in variables:
            cases.append(DeploymentCase(setup, {"job_variables": value}))
            keyed = {"job_variables": value, "idempotency_key": f"job variables {value}"}
            cases.append(DeploymentCase(setup, keyed))
    values: dict[str, tuple[Any, ...]] = {
        "name": ("", None, 5, "a name"),
        "parameters": (None, [], "x", {"x": "y" * 600_000}),
        "enforce_parameter_schema": ("yes", 2, [], "x"),
        "context": (None, {"a": 1}, 3),
        "tags": (None, ["nope"], ["a", "c", "c"], "a", [1], []),
        "labels": ({"tier": 2}, {"prefect.deployment.id": "mine"}, None, {}, {"a": None}, []),
        "infrastructure_document_id": ("x", OTHER, None),
        "parent_task_run_id": ("x", OTHER, None),
        "empirical_policy": ({"retries": 2}, {"max_retries": 3, "resuming": True}, {"retries": "x"}),
        "idempotency_key": (1, None, "x y"),
        "work_queue_name": ("wq-test", "default", "another", "", None, 7),
        "job_variables": ([], "x"),
        "flow_id": (OTHER,),
        "flow_version": ("1",),
        "work_pool_name": ("p",),
        "unknown": (1,),
    }
    for setup in ("bare", "full"):
        for name, several in values.items():
            for value in several:
                cases.append(DeploymentCase(setup, {name: value}))
                if name != "idempotency_key" and setup == "full":
                    key = {"idempotency_key": f"{name}-{value!s:.20}"}
                    cases.append(DeploymentCase(setup, {name: value, **key}))
        for state in STATES:
            cases.append(DeploymentCase(setup, {"state": {"type": state}}))
            details = {"scheduled_time": "2031-01-02T03:04:05.5+02:00"}
            mine = {"type": state, "name": "Mine", "message": "why", "state_details": details}
            cases.append(DeploymentCase(setup, {"state": mine, "idempotency_key": f"key-{state}"}))
            resuming = {"state": {"type": state}, "empirical_policy": {"resuming": True}}
            cases.append(DeploymentCase(setup, resuming, {"x-prefect-api-version": "0.8.3"}))
        for version in ("0.7.9", "x", "3.0.0"):
            cases.append(DeploymentCase(setup, {}, {"x-prefect-api-version": version}))
        automation = {"prefect-automation-id": OTHER, "prefect-automation-name": "TmlnaHRseQ=="}
        cases.append(DeploymentCase(setup, {}, automation))
        # Several faults in one request: which one is reported.
        cases.append(
            DeploymentCase(setup, {"parameters": {"x": variable("missing")}, "work_queue_name": "q1"})
        )
    several_wrong = {"parameters": {"x": variable("missing"), "y": 1}, "enforce_parameter_schema": True}
    cases.append(DeploymentCase("schema", {**several_wrong, "work_queue_name": "q2"}))
    cases.append(DeploymentCase("schema", {"parameters": {"x": 1}, "work_queue_name": "q3"}))
    cases.append(DeploymentCase("required", {"work_queue_name": "q4"}))
    cases.append(DeploymentCase("full", {"work_queue_name": "q5", "parent_task_run_id": OTHER}))
    return cases


CASES = _cases()
