"""The versions of Prefect that tests have seen, known by their newest migration."""

import json
from functools import cache
from pathlib import Path
from typing import Literal

Dialect = Literal["postgresql", "sqlite"]

# By version: the head of its migrations for each kind of database. The newest version first, which
# is the one that all answers are compared with. Written by tests/conformance/pin.py.
FILE = Path(__file__).with_name("prefect_versions.json")


@cache
def versions() -> dict[str, dict[str, str]]:
    """The heads by version, and there by database; the newest version first."""
    known: dict[str, dict[str, str]] = json.loads(FILE.read_text())
    return known


def version_at(dialect: Dialect, revision: str | None) -> str | None:
    """The version that brings a database to this migration; None if no test has seen it."""
    return next((version for version, heads in versions().items() if heads[dialect] == revision), None)
