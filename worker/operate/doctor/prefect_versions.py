"""The Prefect versions that the tests have used, by their newest migration."""

import json
from functools import cache
from pathlib import Path
from typing import Literal

Dialect = Literal["postgresql", "sqlite"]

# For each version the newest migration, by kind of database. The first version is the newest, which
# all answers are compared with. Written by tests/conformance/pin.py.
FILE = Path(__file__).with_name("prefect_versions.json")


@cache
def versions() -> dict[str, dict[str, str]]:
    """The newest migration by version and kind of database, the newest version first."""
    known: dict[str, dict[str, str]] = json.loads(FILE.read_text())
    return known


def version_at(dialect: Dialect, revision: str | None) -> str | None:
    """The version whose newest migration this is. None if no test has used it."""
    return next((version for version, heads in versions().items() if heads[dialect] == revision), None)
