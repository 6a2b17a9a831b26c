"""Looks up what requests for runs of deployments refer to, each kind once for a whole batch, and so
turns these requests into runs; and warns of runs that no work pool's worker sees.
"""

import asyncio
import json
import re
from collections.abc import Hashable, Iterable, Sequence
from time import monotonic
from typing import Any
from uuid import UUID

import structlog
from pydantic_core import from_json

from worker.contract.decode import CreateRequest
from worker.contract.errors import DeploymentNotFound, Refusal
from worker.contract.state import StateType
from worker.creation import NewRun, UnresolvedRun
from worker.deployments.creation import hydrated_limit, merged_parameters, run_of_deployment
from worker.deployments.deployment import Deployment, WorkQueue
from worker.deployments.hydration import variable_names
from worker.deployments.job_variables import job_template
from worker.store.reading import Reader, Row
from worker.store.tables import block_document, variable

log = structlog.get_logger(__name__)

# A request of more bytes is checked in a thread, since that may take seconds: jsonschema goes
# through 500 KB of small values at some 10 us each.
LARGE = 16 * 1024
# Checking holds the event loop; so many seconds at a time.
HELD_SECONDS = 0.005
# What may take for ever in a schema. It is checked in the main thread, which alone can be
# interrupted (``within``).
_ENDLESS = re.compile('"(?:pattern(?:Properties)?|uniqueItems)"')

# Of so many deployments it is remembered that a warning was given. A guess.
REMEMBERED = 1000


async def resolve_deployments(
    reader: Reader, unresolved: Sequence[UnresolvedRun]
) -> Sequence[NewRun | Refusal]:
    """Turn requests for runs of deployments into runs, or into their refusals."""
    deployments = await _deployments(reader, unresolved)
    asked = [(each, deployments.get(_which(each))) for each in unresolved]
    merged = [
        (merged_parameters(each, deployment), hydrated_limit(each, deployment))
        for each, deployment in asked
        if deployment is not None
    ]
    variables = await _variables(reader, merged)
    templates = {each.job_template for each in deployments.values() if each.job_template is not None}
    blocks = {block for each in templates for block in job_template(each).blocks}
    there = {row.id for row in await reader.rows(block_document.c.id, blocks)}

    def resolved(each: UnresolvedRun, deployment: Deployment) -> NewRun | Refusal:
        try:
            return run_of_deployment(each, deployment, variables=variables, blocks=there)
        except Refusal as refusal:
            return refusal.with_traceback(None)

    runs: list[NewRun | Refusal] = []
    since = monotonic()
    for each, deployment in asked:
        if deployment is None:
            body = each.request.body
            name = body.deployment_id if body.deployment_name is None else f"'{body.deployment_name}'"
            runs.append(DeploymentNotFound(f"There is no deployment {name}."))
        elif each.request.size > LARGE and not any(
            _ENDLESS.search(text) for text in (deployment.parameter_schema, deployment.job_template) if text
        ):
            runs.append(await asyncio.to_thread(resolved, each, deployment))
        else:
            runs.append(resolved(each, deployment))
            if monotonic() - since > HELD_SECONDS:
                await asyncio.sleep(0)
                since = monotonic()
    return runs


def _which(unresolved: UnresolvedRun) -> Hashable:
    """The deployment's id, or the names of its flow and its own."""
    body = unresolved.request.body
    return body.deployment_id if body.deployment_name is None else tuple(body.deployment_name.split("/"))


async def _deployments(reader: Reader, unresolved: Sequence[UnresolvedRun]) -> dict[Hashable, Deployment]:
    asked = {_which(each) for each in unresolved}
    ids = [(each,) for each in asked if isinstance(each, UUID)]
    names = [each for each in asked if isinstance(each, tuple)]
    found: dict[Hashable, Deployment] = {}
    for row in (
        *await reader.query(reader.statements.deployments_by_id, ids),
        *await reader.query(reader.statements.deployments_by_name, names),
    ):
        found[row.id] = found[row.flow_name, row.name] = _deployment(row)
    return found


def _deployment(row: Row) -> Deployment:
    parameters, deep = _parse(row.parameters)
    queue = None
    if row.pool_id is not None:
        queue = WorkQueue(row.work_queue_id, row.queue_name, row.pool_id, row.pool_name)
    return Deployment(
        id=row.id,
        flow_id=row.flow_id,
        version=row.version,
        tags=row.tags or [],
        labels=row.labels,
        parameters=parameters or {},
        size=len(row.parameters),
        deep=deep,
        parameter_schema=_text(row.parameter_openapi_schema),
        enforce_parameter_schema=row.enforce_parameter_schema,
        job_variables=_text(row.infra_overrides),
        infrastructure_document_id=row.infrastructure_document_id,
        work_queue_id=row.work_queue_id,
        work_queue_name=row.work_queue_name,
        queue=queue,
        job_template=_text(row.base_job_template),
    )


def _parse(text: str) -> tuple[Any, bool]:
    """JSON, and whether it is nested deeper than the quick parser reads."""
    try:
        return from_json(text), False
    except ValueError:
        return json.loads(text), True


def _text(json_text: str | None) -> str | None:
    """JSON that says something."""
    return None if json_text == "null" else json_text


async def _variables(reader: Reader, parameters: Sequence[tuple[dict[str, Any], int]]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    asked: set[str] = set()
    # The name of one may be in another: that takes another round.
    while names := variable_names(parameters, known) - asked:
        asked |= names
        found = await reader.rows(variable.c.name, names, variable.c.value)
        known |= {row.name: row.value for row in found}
    return known


def warn_of_unserved(runs: Iterable[NewRun], warned: set[UUID]) -> None:
    """Warn of a SCHEDULED run of a deployment that has no work queue: one line in the log for each
    deployment.

    Args:
        warned: the deployments of which a warning was given.
    """
    for new in runs:
        run = new.run
        deployment_id = run.deployment_id
        if (
            deployment_id is None
            or run.work_queue_id is not None
            or run.state_type != StateType.SCHEDULED.value
            or deployment_id in warned
        ):
            continue
        if len(warned) >= REMEMBERED:
            warned.clear()
        warned.add(deployment_id)
        reason = (
            "the request names no work_pool_name; with the type create_flow_run_from_deployment the run "
            "has the deployment's"
            if isinstance(new.request, CreateRequest)
            else "the deployment has no work pool"
        )
        log.warning(
            "run_without_work_pool",
            deployment_id=str(deployment_id),
            flow_run_id=str(run.id),
            reason=reason,
            executed="only by a process that serves the deployment",
        )
