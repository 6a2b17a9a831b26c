"""Turns failed checks of a deployment's run into the refusals that Prefect answers."""

from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any, Protocol
from uuid import UUID

from ...checks.jobs import Verdict
from ...contract.errors import (
    BlockNotFound,
    CheckTooCostly,
    JobVariablesRefused,
    ParametersRefused,
    SchemaRefused,
)
from ..creation import UnresolvedRun
from .deployment import Deployment
from .hydration import Render

_NO_SCHEMA = (
    "Error updating deployment: Cannot update parameters because parameter schema enforcement is enabled "
    "and the deployment does not have a valid parameter schema."
)


class Checks(Protocol):
    """As :class:`worker.checks.checks.Checks`. A check raises Pending until its result is known."""

    def parameters(self, schema: str, parameters: Any, deployment: UUID, size: int) -> Verdict:
        """Check parameters."""

    def job_variables(
        self, template: str, of_deployment: str | None, of_request: Any, deployment: UUID, size: int
    ) -> Verdict:
        """Check job variables."""

    def rendered(self, template: Any, run: UUID, deployment: UUID, size: int) -> Verdict:
        """Render a jinja template."""

    def blocks(self, template: str) -> Mapping[str, UUID | str]:
        """The block documents that give a template's defaults, by the variables' names."""


def renderer(checks: Checks, unresolved: UnresolvedRun, deployment: Deployment) -> Render:
    """The function that renders the templates of a request."""
    size = unresolved.request.size + deployment.size
    return lambda template: checks.rendered(template, unresolved.run_id, deployment.id, size)


def check_parameters(checks: Checks, deployment: Deployment, parameters: dict[str, Any], size: int) -> None:
    """Raise a refusal unless parameters fit the deployment's schema."""
    if deployment.parameter_schema is None:
        raise ParametersRefused(_NO_SCHEMA)
    found = checks.parameters(deployment.parameter_schema, parameters, deployment.id, size)
    if found.outcome == "invalid":
        raise ParametersRefused(f"Error creating flow run: {found.message}")
    _refuse_schema(found, "The parameters")


def check_job_variables(
    checks: Checks,
    deployment: Deployment,
    of_request: dict[str, Any] | None,
    size: int,
    blocks: Collection[UUID],
) -> None:
    """Raise a refusal unless the job variables fit the work pool's base job template, and the
    template's block documents exist (``validate_job_variables_for_deployment_flow_run``).
    """
    template = deployment.job_template
    if template is None:
        return
    found = checks.job_variables(template, deployment.job_variables, of_request, deployment.id, size)
    for block in islice(checks.blocks(template).values(), found.references):
        if block not in blocks:
            raise BlockNotFound(str(block))
    if found.outcome == "invalid":
        raise JobVariablesRefused(f"Error creating flow run: {found.message}")
    _refuse_schema(found, "The job variables")


def _refuse_schema(found: Verdict, what: str) -> None:
    if found.outcome == "unusable":
        raise SchemaRefused(found.message)
    if found.outcome == "costly":
        raise CheckTooCostly(what, found.message)
