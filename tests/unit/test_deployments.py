"""Runs of deployments: the deployment's values, the parameters, and the checks. tests/conformance
compares all of it with Prefect; these are the basics.
"""

import json
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from tests.fuzz.line import DEPLOYMENT, VARIABLES
from tests.support.checks import ChecksHere
from worker.checks.jobs import JobTemplate, Verdict, block_references
from worker.checks.schemas import Invalid, Schema, Unusable
from worker.contract.decode import FlowRunRequest, decode
from worker.contract.errors import (
    BlockNotFound,
    HydrationRefused,
    JobVariablesRefused,
    NoWorkPool,
    ParametersRefused,
    ParametersTooLarge,
    Refusal,
    SchemaRefused,
    ValidationRefused,
)
from worker.contract.flow_run import FlowRun
from worker.contract.kinds import CREATE, FROM_DEPLOYMENT
from worker.contract.message import Message
from worker.contract.request import MAX_PARAMETER_SIZE
from worker.runs.creation import NewRun, UnresolvedRun, requested_run
from worker.runs.deployments.creation import run_of_deployment
from worker.runs.deployments.deployment import Deployment
from worker.runs.deployments.hydration import hydrate, variable_names
from worker.store.work_queues import free_priority

NOW = datetime(2030, 1, 1, tzinfo=UTC)
BLOCK = UUID(int=9)


def decoded(type_: str | None = FROM_DEPLOYMENT.type, **fields: Any) -> FlowRunRequest[Any]:
    body = json.dumps(fields).encode()
    return decode(Message(body, {}, message_id="m", type=type_), max_body_bytes=100_000)


def created(deployment: Deployment = DEPLOYMENT, there: Collection[UUID] = (), **fields: Any) -> FlowRun:
    """The row of a run of a deployment."""
    unresolved = requested_run(decoded(deployment_name="flow/name", **fields), NOW)
    assert isinstance(unresolved, UnresolvedRun)
    return run_of_deployment(
        unresolved, deployment, variables=VARIABLES, blocks=there, checks=ChecksHere()
    ).run


def test_the_type_alone_makes_a_request_one_for_a_deployment() -> None:
    assert decoded(deployment_name="flow/name").kind is FROM_DEPLOYMENT
    for other in (None, "", "create", f"{FROM_DEPLOYMENT.type} ", FROM_DEPLOYMENT.type.upper()):
        assert decoded(other, flow_id=str(BLOCK), deployment_id=str(BLOCK)).kind is CREATE
        with pytest.raises(ValidationRefused):
            decoded(other, deployment_name="flow/name")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"deployment_name": None},
        {"deployment_name": "flow/name", "deployment_id": str(BLOCK)},
        {"deployment_name": "name"},
        {"deployment_name": "/name"},
        {"deployment_name": "flow/"},
        {"deployment_name": "a/b/c"},
        {"deployment_id": "x"},
        {"deployment_name": "flow/name", "flow_id": str(BLOCK)},
        {"deployment_name": "flow/name", "work_pool_name": "p"},
    ],
)
def test_exactly_one_deployment_and_none_but_its_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationRefused):
        decoded(**fields)


def test_one_of_them_may_be_null() -> None:
    assert decoded(deployment_name="flow/name", deployment_id=None)
    assert decoded(deployment_name=None, deployment_id=str(BLOCK))


def test_each_try_asks_for_the_same_run() -> None:
    """Even without an idempotency key or a message id."""
    request = decode(
        Message(b'{"deployment_name": "a/b"}', {}, type=FROM_DEPLOYMENT.type), max_body_bytes=1000
    )
    unresolved = requested_run(request, NOW)
    assert isinstance(unresolved, UnresolvedRun)
    first, second = [
        run_of_deployment(unresolved, DEPLOYMENT, variables={}, blocks={}, checks=ChecksHere()).run.id
        for _ in range(2)
    ]
    assert first == second


def test_what_is_the_deployments_and_what_the_requests() -> None:
    run = created(
        parameters={"n": 1}, tags=["b", "a", "b"], labels={"a": 2}, job_variables={"cpu": 2}, name="mine"
    )
    assert run.parameters == {"a": "b", "n": 1}
    assert run.tags == ["a", "b"]
    assert run.labels == {
        "a": 2,
        "prefect.flow.id": str(DEPLOYMENT.flow_id),
        "prefect.deployment.id": str(DEPLOYMENT.id),
    }
    assert run.job_variables == {"cpu": 2}
    assert (run.flow_id, run.deployment_id, run.deployment_version) == (
        DEPLOYMENT.flow_id,
        DEPLOYMENT.id,
        "1",
    )
    assert (run.state_type, run.next_scheduled_start_time) == ("SCHEDULED", NOW)
    assert (run.work_queue_id, run.pool_queue_name, run.work_pool_name) == (UUID(int=3), "default", "pool")
    assert DEPLOYMENT.parameters == {"a": "b"}


def test_another_queue_is_left_to_be_found() -> None:
    run = created(work_queue_name="other")
    assert (run.work_queue_id, run.work_queue_name, run.work_pool_name) == (None, "other", "pool")
    without = replace(DEPLOYMENT, queue=None, work_queue_id=None, job_template=None)
    assert created(without).work_queue_id is None
    with pytest.raises(NoWorkPool, match="is not associated with a work pool"):
        created(without, work_queue_name="other")


@pytest.mark.parametrize(
    ("changes", "fields", "refusal"),
    [
        ({}, {"parameters": {"a": {"__prefect_kind": "json", "value": "]"}}, "job_variables": {"cpu": "x"}}, HydrationRefused),
        ({}, {"parameters": {"n": "x"}, "job_variables": {"cpu": "x"}}, ParametersRefused),
        ({"parameter_schema": None}, {}, ParametersRefused),
        ({"parameter_schema": '{"type": 7}'}, {}, SchemaRefused),
        ({}, {"job_variables": {"cpu": "x"}, "enforce_parameter_schema": False, "parameters": {"n": "x"}}, JobVariablesRefused),
        ({"job_variables": '{"cpu": "x"}'}, {}, JobVariablesRefused),
        ({"enforce_parameter_schema": False}, {"parameters": {"n": "x"}}, None),
        ({"enforce_parameter_schema": False}, {"parameters": {"n": "x"}, "enforce_parameter_schema": True}, ParametersRefused),
        ({"job_variables": '{"cpu": "x"}'}, {"job_variables": {"cpu": 1}}, None),
    ],
)  # fmt: skip
def test_the_first_thing_that_is_wrong_is_told(
    changes: dict[str, Any], fields: dict[str, Any], refusal: type[Refusal] | None
) -> None:
    deployment = replace(DEPLOYMENT, **changes)
    if refusal is None:
        assert created(deployment, **fields)
        return
    for _ in range(2):  # the cached result is the same
        with pytest.raises(refusal):
            created(deployment, **fields)


def render(template: Any) -> Verdict:
    """Stands for the process that renders templates."""
    return Verdict("invalid", "why") if template == "{{ bad }}" else Verdict("text", f"<{template}>")


def kind(name: Any, **fields: Any) -> dict[str, Any]:
    return {"__prefect_kind": name, **fields}


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_variable_whose_name_no_database_stores_is_not_asked_for(name: str) -> None:
    named: dict[str, Any] = {"a": kind("workspace_variable", variable_name=name)}
    assert variable_names(named, {}, render, 1000) == set()
    with pytest.raises(HydrationRefused, match="not found in workspace"):
        hydrate(named, {}, render)
    # It may come from parsed text.
    named["a"]["variable_name"] = kind("json", value=json.dumps(name))
    assert variable_names(named, {}, render, 1000) == set()


@pytest.mark.parametrize(
    ("value", "hydrated"),
    [
        ([1, {"a": None}], [1, {"a": None}]),
        (kind("none", value=kind("json", value="[1]")), [1]),
        (kind("json", value=kind("workspace_variable", variable_name="v")), VARIABLES["v"]),
        (kind("workspace_variable", variable_name=kind("json", value='"v"')), VARIABLES["v"]),
        ([kind("json"), 1, kind("workspace_variable")], [1]),
        (kind("jinja", template="no mark"), "no mark"),
        (kind("jinja", template="{{ 1 }}"), "<{{ 1 }}>"),
        (kind("jinja", template=["no mark"]), ["no mark"]),
        (kind("jinja", template=kind("json", value='"{{ 1 }}"')), "<{{ 1 }}>"),
        (kind("nothing we know", value=1), 1),
        (kind([], value=1), 1),
        (kind("json", value="1e999"), float("inf")),
    ],
)
def test_a_kind_is_replaced_by_its_value(value: Any, hydrated: Any) -> None:
    assert hydrate({"a": value}, VARIABLES, render) == {"a": hydrated}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (kind("none"), "Missing 'value' key in __prefect object"),
        (kind("jinja"), "Missing 'template' key in __prefect object"),
        (kind("json", value="nul"), "Invalid JSON: Expecting value: line 1 column 1"),
        (kind("workspace_variable", variable_name="w"), "Variable 'w' not found in workspace."),
        (kind("workspace_variable", variable_name={"v": 1}), "Variable '{'v': 1}' not found"),
        (kind("jinja", template="{{ bad }}"), "why"),
        (kind("jinja", template=5), "Invalid jinja: the template is no text"),
        (kind("json", value='"a\\u0000"'), "a: Input should not contain NUL"),
        (kind("json", value="[" * 501 + "]" * 501), "nested too deep"),
        (kind("json", value="[" * 100_000), "nested too deep"),
        (kind("json", value="9" * 5_000), "Invalid JSON: Exceeds the limit"),
    ],
)
def test_why_a_kind_has_no_value_is_told(value: Any, reason: str) -> None:
    with pytest.raises(HydrationRefused) as refused:
        hydrate({"a": value}, VARIABLES, render)
    assert str(refused.value).startswith("Error hydrating flow run parameters: ")
    assert reason in str(refused.value)


def with_variables(count: int, *, limit: int = MAX_PARAMETER_SIZE) -> NewRun:
    """A run whose parameters name a variable of 5,000 bytes this many times."""
    body = {
        "deployment_name": "flow/name",
        "parameters": {"x": [kind("workspace_variable", variable_name="v")] * count},
    }
    message = Message(json.dumps(body).encode(), {}, type=FROM_DEPLOYMENT.type)
    unresolved = requested_run(decode(message, max_body_bytes=1_000_000, max_parameter_size=limit), NOW)
    assert isinstance(unresolved, UnresolvedRun)
    return run_of_deployment(
        unresolved, DEPLOYMENT, variables={"v": "a" * 4998}, blocks={}, checks=ChecksHere()
    )


def test_what_variables_add_to_a_run_is_counted() -> None:
    """This bounds a statement's size."""
    assert with_variables(100).added > 500_000


def test_the_values_of_variables_are_within_the_limit_of_parameters() -> None:
    """A request of 60 KB may name 5 MB. The deployment's own parameters don't count."""
    room = MAX_PARAMETER_SIZE + DEPLOYMENT.size
    with pytest.raises(ParametersTooLarge, match=f"{room:,} bytes"):
        with_variables(1000)
    assert with_variables(1000, limit=0).added > 5_000_000
    at_limit = with_variables(100, limit=with_variables(100).added - DEPLOYMENT.size)
    with pytest.raises(ParametersTooLarge) as refused:
        with_variables(100, limit=at_limit.added - DEPLOYMENT.size - 1)
    assert refused.value.status == 422


def test_values_are_measured_before_they_are_looked_at() -> None:
    """One value may occur in many places, so scanning all of them could take seconds."""

    class Shown(dict[str, Any]):
        def items(self) -> Any:
            raise AssertionError("looked at")

    asked = {"x": [kind("workspace_variable", variable_name="v")] * 1000}
    with pytest.raises(ParametersTooLarge):
        hydrate(asked, {"v": Shown({"a": 1})}, render, 1000)


def test_parameters_without_a_kind_are_not_copied() -> None:
    parameters = {"a": [[{}]] * 3}
    assert hydrate(parameters, {}, render) is parameters


def test_variables_are_asked_for_in_rounds() -> None:
    """A variable named by another variable's value is fetched in the next round."""
    inner = kind("workspace_variable", variable_name=kind("workspace_variable", variable_name="v"))
    asked = {"a": inner, "b": kind("workspace_variable", variable_name="w")}
    assert variable_names(asked, {}, render) == {"v"}
    assert variable_names(asked, {"v": "x"}, render) == {"x", "w"}
    assert variable_names(asked, {"v": "x", "w": 1, "x": 2}, render) == set()
    assert variable_names({"a": kind("json", value="]")}, {}, render) == set()


def test_a_schema_of_pydantic_1_is_mended() -> None:
    old = {
        "properties": {
            "maybe": {"type": "integer"},
            "pair": {"type": "array", "items": [{"type": "integer"}, {"type": "string"}]},
            "inner": {"type": "object", "properties": {"maybe": {"type": "string"}}},
            "defaulted": {"type": "integer", "default": 1},
            "needed": {"type": "integer"},
        },
        "required": ["needed"],
    }
    schema = Schema(json.loads(json.dumps(old)))
    schema.check({"maybe": None, "pair": [1, "a"], "inner": {"maybe": None}, "needed": 1})
    for wrong in ({"needed": None}, {"needed": 1, "pair": ["a"]}, {"needed": 1, "defaulted": None}, {}):
        with pytest.raises(Invalid):
            schema.check(wrong)
    Schema(json.loads(json.dumps(old)), none_for_default=True).check({"defaulted": None, "needed": 1})
    Schema(json.loads(json.dumps(old)), required=False).check({})
    Schema(json.loads(json.dumps(old)), given=["needed"]).check({})


def test_the_reason_names_the_field() -> None:
    schema = Schema({"properties": {"a": {"properties": {"b": {"type": "string"}}}}, "required": ["a"]})
    with pytest.raises(Invalid, match=r"^Validation failed for field 'a.b'. Failure reason: 1 is not"):
        schema.check({"a": {"b": 1}})
    with pytest.raises(Invalid, match=r"^Validation failed. Failure reason: 'a' is a required property$"):
        schema.check({})


@pytest.mark.parametrize(
    "schema",
    [None, True, [], "x", {"type": 7}, {"properties": 7}, {"properties": {"a": 7}}, {"definitions": 7}],
)
def test_what_is_no_schema_is_told(schema: Any) -> None:
    with pytest.raises(Unusable, match=r"^Invalid schema"):
        Schema(schema).check({})


def test_nothing_is_fetched() -> None:
    with pytest.raises(Invalid, match="Unresolvable"):
        Schema({"$ref": "http://127.0.0.1:1/schema.json"}).check({})


def template(**properties: Any) -> str:
    return json.dumps({"variables": {"type": "object", "properties": properties, "required": ["image"]}})


def outcome(template: str, *variables: Any) -> str:
    return JobTemplate(template).verdict(variables).outcome


def test_defaults_and_variables_go_over_each_other() -> None:
    text = template(image={"type": "string"}, cpu={"type": "integer", "default": 1})
    assert outcome(text, {"image": "a"}) == "fits"
    assert outcome(text, None, {"image": "a", "cpu": 2}) == "fits"
    assert outcome(text, {"image": 1}, {"image": "a"}) == "fits"
    for variables in ((), ({"image": 1},), ({"image": "a"}, {"image": 1}), ({"image": "a"}, {"cpu": "x"})):
        assert outcome(text, *variables) == "invalid"


def test_where_a_default_does_not_fit_nothing_is_required() -> None:
    assert outcome(template(image={"type": "string", "default": 1})) == "fits"


def test_a_block_that_gives_a_default_has_to_be_there() -> None:
    reference = {"$ref": {"block_document_id": str(BLOCK)}}
    text = template(image={"type": "string", "default": reference})
    assert block_references(text) == {"image": BLOCK}
    assert outcome(text) == "fits"
    deployment = replace(DEPLOYMENT, job_template=text)
    with pytest.raises(BlockNotFound):
        created(deployment)
    assert created(deployment, there={BLOCK})


@pytest.mark.parametrize("text", ["{}", "[]", '{"variables": {}}', '{"variables": null}', "null"])
def test_without_variables_in_the_template_all_are_taken(text: str) -> None:
    assert outcome(text, {"a": 1}, {"b": 2}) == "fits"


def test_a_template_that_is_no_schema_is_told_each_time() -> None:
    ready = JobTemplate('{"variables": {"type": 7}}')
    for _ in range(2):
        found = ready.verdict([{"a": 1}])
        assert (found.outcome, found.references) == ("unusable", 0)
        assert found.message.startswith("Invalid schema")


@pytest.mark.parametrize(
    ("taken", "free"), [([], 1), ([1], 2), ([2, 1], 3), ([1, 3], 2), ([2], 1), ([1, 1, 2], 2), ([5, 5], 1)]
)
def test_a_new_queue_has_the_first_free_priority(taken: list[int], free: int) -> None:
    assert free_priority(taken) == free
