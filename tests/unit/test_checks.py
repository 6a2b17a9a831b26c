"""Checks: the same verdicts and messages as jsonschema's own, in a bounded time."""

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, SchemaError
from jsonschema._utils import uniq
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from tests.support.costly import EXPRESSION, tree
from tests.support.json_schemas import SCHEMAS, VALUES
from worker.checks.fairness import FairQueue
from worker.checks.ordinary import cost_of, takes_less
from worker.checks.remembering import Remembering, can_be_remembered
from worker.checks.unique import are_unique, canonical


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, max_size=6))
def test_items_are_unique_where_the_library_finds_them_so(items: list[Any]) -> None:
    assert are_unique(items) == uniq(items)  # type: ignore[no-untyped-call]  # as the library is


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (0.0, -0.0, True),
        ([1], [1.0], True),
        ([1], [True], False),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, True),
        ({"a": None}, {}, False),
        (10**22, 1e22, True),
        (10**400, 10**400 + 1, False),
        (float("nan"), float("nan"), True),
        ("1;", 1, False),
        (["a", "b"], ["ab"], False),
        ([["a"], "b"], [["a", "b"]], False),
    ],
)
def test_equal_values_have_one_text(one: Any, other: Any, equal: bool) -> None:
    assert (canonical(one) == canonical(other)) is equal


def test_many_items_that_can_not_be_sorted_are_no_work() -> None:
    """The library needs a minute or more for this."""
    items: list[Any] = [{"a": number} for number in range(40_000)]
    assert are_unique(items)
    assert not are_unique([*items, {"a": 7.0}])


@settings(max_examples=200, deadline=None)
@given(SCHEMAS)
def test_what_is_ordinary_is_a_schema(schema: Any) -> None:
    if cost_of(schema) is not None:
        Draft202012Validator.check_schema(schema)


def verdict(validator: Any, value: Any) -> Any:
    """A validator's verdict, with everything that decides the message."""
    try:
        error = best_match(validator.iter_errors(value))
    except RecursionError:
        return "recursion"
    except Unresolvable as unresolvable:
        return str(unresolvable)
    return error and (error.message, error.json_path, list(error.absolute_schema_path))


def compare_with_library(schema: Any, value: Any) -> None:
    """Assert that caching changes no verdict where it is allowed."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError:
        assert cost_of(schema) is None
        return
    if not can_be_remembered(schema):
        return
    arguments: Any = {"registry": Registry()}
    mine = verdict(Remembering().validator(schema, **arguments), value)
    assert mine == verdict(Draft202012Validator(schema, **arguments), value)


@settings(max_examples=300, deadline=None)
@given(SCHEMAS, st.lists(VALUES, min_size=1, max_size=4))
def test_a_remembered_verdict_is_the_librarys(schema: Any, values: list[Any]) -> None:
    for value in values:
        compare_with_library(schema, value)


@pytest.mark.parametrize("leaf", [1, "x", None])
@pytest.mark.parametrize("depth", [1, 3, 6])
def test_a_tree_of_two_kinds_has_the_librarys_verdict(depth: int, leaf: Any) -> None:
    remembering = Remembering()
    value = {"e": tree(depth, leaf)}
    mine = verdict(remembering.validator(copy.deepcopy(EXPRESSION)), value)
    assert mine == verdict(Draft202012Validator(EXPRESSION), value)


def test_a_deep_tree_is_no_work() -> None:
    """The library doubles its time with each level: depth 24 takes hours."""
    validator = Remembering().validator(EXPRESSION)
    assert verdict(validator, {"e": tree(50, 1)}) is None
    message, path, _ = verdict(Remembering().validator(EXPRESSION), {"e": tree(50, "x")})
    assert (path, message[-42:]) == ("$.e", "is not valid under any of the given schemas"[-42:])


@pytest.mark.parametrize(
    ("schema", "remembered"),
    [
        (EXPRESSION, True),
        ({"$ref": "#/$defs/gone"}, False),
        ({"$ref": "http://127.0.0.1/x"}, False),
        ({"$ref": "#"}, False),
        ({"properties": {"a": {"$ref": "#"}}}, True),
        ({"anyOf": [{"type": "null"}, {"not": {"$ref": "#"}}]}, False),
        ({"$id": "http://a/b"}, False),
        ({"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#"}}}, False),
        ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"if": {"$ref": "#/$defs/a"}}}}, False),
        ({"properties": {"$ref": {"type": "string"}}}, True),
    ],
)
def test_what_has_no_end_is_left_to_the_library(schema: Any, remembered: bool) -> None:
    assert can_be_remembered(schema) is remembered


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "^a$"},
        {"patternProperties": {"a": {}}},
        {"$ref": "#"},
        {"$ref": "#/$defs/gone"},
        {"$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}}}},
        {"unevaluatedProperties": False},
        {"contains": {}},
        {"not": {}},
        {"$schema": "https://json-schema.org/draft/2020-12/schema"},
        {"type": "text"},
        {"properties": []},
        {"required": ["a", "a"]},
        {"minLength": -1},
        [],
    ],
)
def test_whose_cost_is_not_plain_is_not_ordinary(schema: Any) -> None:
    assert cost_of(schema) is None


def test_references_that_double_each_time_cost_what_they_take() -> None:
    definitions: dict[str, Any] = {"d0": {"type": "integer"}}
    for number in range(1, 40):
        definitions[f"d{number}"] = {"allOf": [{"$ref": f"#/$defs/d{number - 1}"}] * 2}
    cost = cost_of({"$defs": definitions, "$ref": "#/$defs/d39"})
    assert cost is not None
    assert not takes_less(cost, 1, 1e9)


def test_large_values_are_seen_without_looking_at_all() -> None:
    cost = cost_of({"properties": {"a": {"items": {"type": "integer"}}}})
    assert cost is not None
    assert takes_less(cost, {"a": [1] * 10}, 5000)
    assert not takes_less(cost, {"a": [1] * 1_000_000}, 5000)
    assert not takes_less(cost, {"a": ["a" * 1_000_000]}, 5000)


def test_whose_checks_take_long_does_not_keep_others_waiting() -> None:
    turns: FairQueue[str, int] = FairQueue()
    for number in range(4):
        turns.put("slow", number)
    for number in range(3):
        turns.put("quick", number)
    order = []
    while (turn := turns.next()) is not None:
        order.append((turn.whose, turn.item))
        turns.spent(turn, 10.0 if turn.whose == "slow" else 0.01)
        if order[-1] == ("quick", 2):
            turns.put("late", 0)
    assert order[0] == ("slow", 0)
    assert order[1:5] == [("quick", 0), ("quick", 1), ("quick", 2), ("late", 0)]
    assert order[5:] == [("slow", 1), ("slow", 2), ("slow", 3)]


def test_the_process_imports_little() -> None:
    """It uses memory beside the worker, and a request waits for its start."""
    code = "import sys, json, worker.checks.__main__; print(json.dumps(sorted(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(shown.stdout)}
    assert not loaded & {"pydantic", "sqlalchemy", "aio_pika", "asyncio", "structlog", "jinja2", "typer"}
