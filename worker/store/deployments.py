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
from sqlalchemy import Select

from worker.contract.allowed import Allowed
from worker.contract.decode import CreateRequest, decoded_size
from worker.contract.encoding import dumps
from worker.contract.errors import DeploymentNotFound, Refusal
from worker.contract.state import StateType
from worker.creation import NewRun, UnresolvedRun
from worker.deployments.creation import hydrated_limit, merged_parameters, run_of_deployment
from worker.deployments.deployment import Deployment, WorkQueue
from worker.deployments.hydration import check_variables, variable_names
from worker.deployments.job_variables import job_template
from worker.store.outcome import Undecided
from worker.store.reading import Reader, Row, Unreadable
from worker.store.room import NO_ROOM, in_turns
from worker.store.tables import block_document, variable
from worker.tasks.budget import Budget
from worker.tasks.turns import Turns

log = structlog.get_logger(__name__)

# A request of more bytes is checked in a thread, since that may take seconds: jsonschema goes
# through 500 KB of small values at some 10 us each.
LARGE = 16 * 1024
# Checking holds the event loop; so many seconds at a time.
HELD_SECONDS = 0.005
# What may take for ever in a schema. It is checked in the main thread, which alone can be
# interrupted (``within``).
_ENDLESS = re.compile('"(?:pattern(?:Properties)?|uniqueItems)"')

# Characters that deployments have in a batch: parameters, schemas, job variables, templates. And
# bytes that their parameters take, estimated by decoded_size. A batch of deployments that are
# larger together is served in pieces, one that is larger by itself alone.
TEXTS_MAX = 4 * 1024 * 1024
VALUES_MAX = 24 * 1024 * 1024

# Of so many deployments it is remembered that a warning was given. A guess.
REMEMBERED = 1000


async def resolve_deployments(
    reader: Reader, unresolved: Sequence[UnresolvedRun], turns: Turns, allowed: Allowed
) -> Sequence[NewRun | Refusal | Undecided]:
    """Turn requests for runs of deployments into runs, or into their refusals.

    Args:
        turns: of those whose deployments have no room beside the others'; they are undecided.
        allowed: what producers may name.
    """
    try:
        deployments = await _deployments(reader, unresolved, turns)
    except Unreadable as unreadable:
        return [unreadable.refusal] * len(unresolved)
    asked = [(each, deployments.get(_which(each))) for each in unresolved]
    there = [(each, deployment) for each, deployment in asked if isinstance(deployment, Deployment)]
    merged = [
        (merged_parameters(each, deployment), hydrated_limit(each, deployment)) for each, deployment in there
    ]
    variables = await _variables(reader, merged)
    templates = {deployment.job_template for _, deployment in there if deployment.job_template is not None}
    blocks = {block for each in templates for block in job_template(each).blocks}
    no_blocks: Refusal | None = None
    known: set[UUID] = set()
    try:
        known |= {row.id for row in await reader.rows(block_document.c.id, blocks)}
    except Unreadable as unreadable:
        no_blocks = unreadable.refusal

    def resolved(each: UnresolvedRun, deployment: Deployment) -> NewRun | Refusal:
        try:
            allowed.flows.check("flow", deployment.flow_name)
            allowed.deployments.check("deployment", f"{deployment.flow_name}/{deployment.name}")
            if no_blocks and deployment.job_template and job_template(deployment.job_template).blocks:
                return no_blocks
            if allowed.variables.limited:
                check_variables(each.request.body.parameters, variables, allowed.variables)
            return run_of_deployment(each, deployment, variables=variables, blocks=known)
        except Refusal as refusal:
            return refusal.freed()

    runs: list[NewRun | Refusal | Undecided] = []
    hydrated = Budget(VALUES_MAX)
    crowded: Undecided | None = None
    since = monotonic()
    for each, deployment in asked:
        if deployment is None:
            body = each.request.body
            name = body.deployment_id if body.deployment_name is None else f"'{body.deployment_name}'"
            if body.deployment_name is not None and body.deployment_name not in allowed.deployments:
                # As if it were there: a producer need not know.
                runs.append(allowed.deployments.refusal("deployment", body.deployment_name))
            else:
                runs.append(DeploymentNotFound(f"There is no deployment {name}."))
        elif isinstance(deployment, Undecided):
            runs.append(deployment)
        elif not hydrated.fits(1):
            crowded = crowded or Undecided(NO_ROOM, turns.wait(first=True))
            runs.append(crowded)
        elif each.request.size > LARGE and not any(
            _ENDLESS.search(text) for text in (deployment.parameter_schema, deployment.job_template) if text
        ):
            runs.append(await asyncio.to_thread(resolved, each, deployment))
        else:
            runs.append(resolved(each, deployment))
            if monotonic() - since > HELD_SECONDS:
                await asyncio.sleep(0)
                since = monotonic()
        # A variable may stand for a few bytes of the request, and be JSON that is read.
        new = runs[-1]
        if isinstance(new, NewRun) and isinstance(deployment, Deployment) and new.added > deployment.size:
            hydrated.change(decoded_size(dumps(new.run.parameters)))
    return runs


def _which(unresolved: UnresolvedRun) -> Hashable:
    """The deployment's id, or the names of its flow and its own."""
    body = unresolved.request.body
    return body.deployment_id if body.deployment_name is None else tuple(body.deployment_name.split("/"))


async def _deployments(
    reader: Reader, unresolved: Sequence[UnresolvedRun], turns: Turns
) -> dict[Hashable, Deployment | Undecided]:
    """The deployments that are asked for, by ids and by names, each once; or that they have to
    wait for their turn. The one that was asked for first is always there.
    """
    asked = dict.fromkeys(_which(each) for each in sorted(unresolved, key=lambda each: each.now))
    found: dict[Hashable, Deployment | Undecided] = {}
    statements = reader.statements
    if len(asked) == 1:
        rows = await _asked(reader, asked, statements.deployments_by_id, statements.deployments_by_name)
    else:
        sizes: dict[Hashable, Row] = {}
        by_id, by_name = statements.deployment_sizes_by_id, statements.deployment_sizes_by_name
        for row in await _asked(reader, asked, by_id, by_name):
            sizes[row.id] = sizes[row.flow_name, row.name] = row
        first: dict[UUID, int] = {}
        in_order = {sizes[each].id: sizes[each] for each in asked if each in sizes}.values()
        for row, waiting in in_turns(((row, row.size) for row in in_order), TEXTS_MAX, turns):
            if waiting is None:
                first[row.id] = len(first)
            else:
                found[row.id] = found[row.flow_name, row.name] = waiting
        rows = list(await reader.query(statements.deployments_by_id, [(each,) for each in first]))
        rows.sort(key=lambda row: first[row.id])
    templates = {row.pool_id: row.base_job_template for row in rows if row.base_job_template is not None}
    values = Budget(VALUES_MAX)
    crowded: Undecided | None = None
    rows.reverse()
    while rows:  # the text of one is let go before the next is read
        row = rows.pop()
        each: Deployment | Undecided
        if values.take(decoded_size(row.parameters.encode())):
            each = _deployment(row, templates.get(row.pool_id))
        else:
            each = crowded = crowded or Undecided(NO_ROOM, turns.wait(first=True))
        found[row.id] = found[row.flow_name, row.name] = each
    return found


async def _asked(
    reader: Reader, asked: Iterable[Hashable], by_id: Select[Any], by_name: Select[Any]
) -> list[Row]:
    ids = [(each,) for each in asked if isinstance(each, UUID)]
    names = [each for each in asked if isinstance(each, tuple)]
    return [*await reader.query(by_id, ids), *await reader.query(by_name, names)]


def _deployment(row: Row, template: str | None) -> Deployment:
    parameters, deep = _parse(row.parameters)
    queue = None
    if row.pool_id is not None:
        queue = WorkQueue(row.work_queue_id, row.queue_name, row.pool_id, row.pool_name)
    return Deployment(
        id=row.id,
        flow_id=row.flow_id,
        flow_name=row.flow_name,
        name=row.name,
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
        job_template=_text(template),
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
        try:
            found = await reader.rows(variable.c.name, names, variable.c.value)
        except Unreadable as unreadable:
            return _Unreadable(unreadable.refusal)
        known |= {row.name: row.value for row in found}
    return known


class _Unreadable(dict[str, Any]):
    """Variables that can't be read: whoever asks for one is refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        self._refusal = refusal

    def __missing__(self, name: str) -> Any:
        raise self._refusal


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
