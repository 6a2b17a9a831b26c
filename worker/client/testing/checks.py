"""Checks parameters, job variables and templates at once. Unlike the worker's they have no limit of
time, as a test's schemas are its own.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from uuid import UUID

from ...checks.jobs import PREPARE, TEXT_MAX, Kind, Prepared, Verdict, block_references


class Checks:
    """As :class:`worker.runs.deployments.checking.Checks`; never raises Pending."""

    def parameters(self, schema: str, parameters: Any, deployment: UUID, size: int) -> Verdict:
        """Check parameters."""
        return _prepared("parameters", schema).verdict(parameters)

    def job_variables(
        self, template: str, of_deployment: str | None, of_request: Any, deployment: UUID, size: int
    ) -> Verdict:
        """Check job variables."""
        theirs = None if of_deployment is None else json.loads(of_deployment)
        return _prepared("job variables", template).verdict([theirs, of_request])

    def rendered(self, template: Any, run: UUID, deployment: UUID, size: int) -> Verdict:
        """Render a jinja template."""
        from ...checks.templates import rendered  # few tests have one, and jinja takes 50 ms to load

        return rendered(template, TEXT_MAX)

    def blocks(self, template: str) -> Mapping[str, UUID | str]:
        """The block documents that give a template's defaults, by the variables' names."""
        return block_references(template)


@lru_cache(maxsize=100)
def _prepared(kind: Kind, text: str) -> Prepared:
    return PREPARE[kind](text)
