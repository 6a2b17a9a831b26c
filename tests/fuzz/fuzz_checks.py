"""The fuzzer of checks, for ``make fuzz``: schemas and values of tests/support/json_schemas.py.
Each verdict and message is compared with the library's own validator.
"""

import json
import sys
from typing import Any

import atheris
from hypothesis import given

with atheris.instrument_imports(include=["worker"]):
    from tests.support.json_schemas import SCHEMAS, VALUES
    from tests.unit.test_checks import compare_with_library
    from worker.checks.jobs import PREPARE


@given(SCHEMAS, VALUES)
def check(schema: Any, value: Any) -> None:
    """Check one value; a failed assertion is a finding."""
    assert PREPARE["parameters"](json.dumps(schema)).verdict(value).outcome in ("fits", "invalid", "unusable")
    compare_with_library(schema, value)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check.hypothesis.fuzz_one_input)
    atheris.Fuzz()
