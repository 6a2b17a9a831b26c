"""Schemas of every keyword, with values: our verdict and message equal those of Prefect's
``prefect.utilities.schema_tools.validation.validate``, run in its own interpreter.
"""

import copy
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.prefect_server import VERSION, install
from tests.support.costly import EXPRESSION, tree
from tests.support.json_schemas import NAMES, SCHEMAS, VALUES
from worker.checks.jobs import ParameterSchema
from worker.checks.schemas import CIRCULAR

SCRIPT = Path(__file__).with_name("prefect_validate.py")
# Few, and how many in ``make test-long``. A hundred take some seconds.
GENERATED, GENERATED_LONG = 100, 500


class PrefectValidation:
    """Prefect's own validation; see the script.

    Attributes:
        found: how often each verdict occurred.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.found: Counter[str] = Counter()

    def verdict(self, schema: Any, value: Any) -> tuple[str, str]:
        """Its verdict (fits, invalid, circular, slow or broken) and message."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([schema, value]) + "\n")
        self._process.stdin.flush()
        outcome, message = json.loads(self._process.stdout.readline())
        self.found[outcome] += 1
        return outcome, message


@contextmanager
def _started() -> Iterator[PrefectValidation]:
    command = [str(install(VERSION) / "python"), str(SCRIPT)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=SCRIPT.parent
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield PrefectValidation(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def prefect() -> Iterator[PrefectValidation]:
    with _started() as validation:
        yield validation


def compare(prefect: PrefectValidation, schema: Any, value: Any) -> None:
    """Assert that our verdict equals Prefect's."""
    theirs, message = prefect.verdict(schema, value)
    ours = ParameterSchema(json.dumps(schema)).verdict(copy.deepcopy(value))
    if theirs in ("fits", "invalid"):
        assert (ours.outcome, ours.message) == (theirs, message)
    elif theirs == "circular":
        assert (ours.outcome, ours.message) == ("unusable", CIRCULAR)
    elif theirs == "broken":
        assert ours.outcome == "unusable"


# Prefect's validation of some of them takes seconds each.
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [GENERATED, pytest.param(GENERATED_LONG, marks=pytest.mark.long)])
def test_generated_schemas_have_prefects_verdict(prefect: PrefectValidation, count: int) -> None:
    before = Counter(prefect.found)

    @settings(max_examples=count, deadline=None)
    @given(SCHEMAS, st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
    def each_has_it(schema: Any, value: Any) -> None:
        compare(prefect, schema, value)

    each_has_it()
    found = prefect.found - before
    print(found)
    # Enough of both was compared.
    assert min(found["fits"], found["invalid"]) > count // 20


@pytest.mark.parametrize("leaf", [1, "x", None])
@pytest.mark.parametrize("depth", [1, 4, 7])
def test_a_tree_of_two_kinds_has_prefects_verdict(prefect: PrefectValidation, depth: int, leaf: Any) -> None:
    compare(prefect, EXPRESSION, {"e": tree(depth, leaf)})


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [{"a": 1}, {"a": 1.0}]}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [{"a": 1}, {"a": True}]}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [[1], [True], [1]]}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [[1], "b", [True], [1.0]]}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [0, False, -0.0]}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [float("nan"), float("nan")]}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": ["x", float("nan"), float("nan")]}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": ["x", 10**22, 1e22]}),
        ({"$ref": "#"}, {}),
        ({"properties": {"a": {"$ref": "#/gone"}}}, {"a": 1}),
        ({"anyOf": [{"type": "object"}, {"$ref": "http://127.0.0.1:1/"}]}, {}),
        ({"anyOf": [{"type": "null", "allOf": [{"$ref": "#/gone"}]}, {"type": "object"}]}, {}),
        ({"properties": {"a": {"$ref": "#/$defs/d"}}, "$defs": {"d": {"items": {"$ref": "#/$defs/d"}}}}, {"a": [[[]]]}),
    ],
)  # fmt: skip
def test_odd_ones_have_prefects_verdict(prefect: PrefectValidation, schema: Any, value: Any) -> None:
    compare(prefect, schema, value)
