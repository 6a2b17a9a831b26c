"""Turns requests for runs of deployments into runs. Looks up deployments, variables and blocks once
per batch, and warns of runs that no work pool's worker sees.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Any
from uuid import UUID

import structlog
from pydantic_core import from_json

from worker.checks.checks import Checks, Pending
from worker.contract.allowed import Allowed
from worker.contract.decode import decoded_size, may_describe
from worker.contract.encoding import dumps
from worker.contract.errors import Refusal, Unprocessable
from worker.contract.state import StateType
from worker.runs.creation import NewRun, UnresolvedRun
from worker.runs.deployments.checking import renderer
from worker.runs.deployments.creation import (
    described_parameters,
    hydrated_limit,
    is_described,
    no_deployment,
    run_of_deployment,
)
from worker.runs.deployments.deployment import Deployment, WorkQueue
from worker.runs.deployments.hydration import check_variables, variable_names
from worker.store.near import near_names
from worker.store.outcome import Undecided
from worker.store.reading import NO_ROOM, Reader, Row, Unreadable, in_turns
from worker.store.tables import block_document, variable
from worker.tasks.budget import Budget
from worker.tasks.pace import Pace
from worker.tasks.turns import Turns

log = structlog.get_logger(__name__)

# Requests hold the event loop for at most this many seconds at a time.
HELD_SECONDS = 0.005
# A request and its deployment with more bytes than this get a turn of their own.
LARGE = 64 * 1024

# Limits for the deployments of a batch: characters of their parameters, schemas, job variables and
# templates, and bytes of their decoded parameters, as estimated by decoded_size. Larger batches are
# served in pieces. A deployment above a limit is served alone.
TEXTS_MAX = 4 * 1024 * 1024
VALUES_MAX = 24 * 1024 * 1024

# Remember this many deployments, to warn once of each. A guess.
REMEMBERED = 1000


async def resolve_deployments(
    reader: Reader,
    checks: Checks,
    unresolved: Sequence[UnresolvedRun],
    turns: Turns,
    allowed: Allowed,
    pace: Pace,
) -> Sequence[NewRun | Refusal | Undecided]:
    """Turn requests for runs of deployments into runs or refusals. A request is undecided while its
    check is under way.

    Args:
        checks: makes the checks.
        turns: for requests whose deployments have no room yet; they are undecided.
        allowed: the names that producers may use.
        pace: gives turns for large requests.
    """
    try:
        deployments = await _deployments(reader, unresolved, turns)
    except Unreadable as unreadable:
        if any(each.request.plain for each in unresolved):
            raise  # all plain messages need it
        return [unreadable.refusal] * len(unresolved)
    missing = {which: None for each in unresolved if (which := _which(each)) not in deployments}
    near = await near_names(reader, missing, allowed)
    asked = [
        _Asked(each, deployment, checks, allowed)
        if isinstance(deployment, Deployment)
        else _unasked(each, deployment, allowed, near)
        for each in unresolved
        for deployment in (deployments.get(_which(each)),)
    ]
    there = [each for each in asked if isinstance(each, _Asked)]
    rest = _Rest(pace)
    variables = await _variables(reader, there, rest)
    templates = {each.deployment.job_template for each in there if each.deployment.job_template is not None}
    blocks = {
        block for each in templates for block in checks.blocks(each).values() if isinstance(block, UUID)
    }
    known: set[UUID] | Refusal
    try:
        known = {row.id for row in await reader.rows(block_document.c.id, blocks)}
    except Unreadable as unreadable:
        known = unreadable.refusal
    runs: list[NewRun | Refusal | Undecided] = []
    hydrated = Budget(VALUES_MAX)
    crowded: Undecided | None = None
    for each in asked:
        if not isinstance(each, _Asked):
            runs.append(each)
        elif not hydrated.fits(1):
            crowded = crowded or Undecided(NO_ROOM, turns.wait(first=True))
            runs.append(crowded)
        else:
            await rest.before(each)
            new = each.resolved(variables, known)
            runs.append(new)
            # A few bytes of the request may name a variable whose JSON is large.
            if isinstance(new, NewRun) and new.added > each.deployment.size:
                hydrated.change(decoded_size(dumps(new.run.parameters)))
    return runs


def _unasked(
    unresolved: UnresolvedRun,
    unusable: Undecided | Refusal | None,
    allowed: Allowed,
    near: Mapping[tuple[Any, ...], str],
) -> Refusal | Undecided:
    """The outcome of a request whose deployment is missing, unusable, or waits for its turn."""
    if unusable is not None:
        return unusable
    body = unresolved.request.body
    if body.deployment_name is not None and body.deployment_name not in allowed.deployments:
        # The same answer as for an existing one: a producer must not learn that it is missing.
        return allowed.deployments.refusal("deployment", body.deployment_name)
    return no_deployment(body, near.get(_which(unresolved), ""))


class _Asked:
    """A request with its deployment.

    Attributes:
        deployment: the deployment.
        size: of both, in bytes.
    """

    def __init__(
        self, unresolved: UnresolvedRun, deployment: Deployment, checks: Checks, allowed: Allowed
    ) -> None:
        self.deployment = deployment
        self.size = unresolved.request.size + deployment.size
        self._allowed = allowed
        self._unresolved = unresolved
        self._checks = checks
        self._pending: Pending | None = None

    def variable_names(self, known: dict[str, Any]) -> set[str]:
        """The variables that the request needs, as far as its templates are rendered."""
        self._pending = None
        if not is_described(self._unresolved, self.deployment):
            return set()
        try:
            return variable_names(
                described_parameters(self._unresolved, self.deployment),
                known,
                renderer(self._checks, self._unresolved, self.deployment),
                hydrated_limit(self._unresolved, self.deployment),
            )
        except Pending as pending:
            self._pending = pending
            return set()

    def resolved(
        self, variables: dict[str, Any], blocks: set[UUID] | Refusal
    ) -> NewRun | Refusal | Undecided:
        """The request's run, or the reason against it.

        Args:
            blocks: the existing ones, or a refusal if they can't be read.
        """
        try:
            return self._resolved(variables, blocks)
        except Refusal as refusal:
            return refusal.freed()
        except Pending as pending:
            return Undecided(str(pending), pending.ready)

    def _resolved(self, variables: dict[str, Any], blocks: set[UUID] | Refusal) -> NewRun:
        deployment, allowed = self.deployment, self._allowed
        allowed.flows.check("flow", deployment.flow_name)
        allowed.deployments.check("deployment", f"{deployment.flow_name}/{deployment.name}")
        if isinstance(blocks, Refusal):
            if deployment.job_template is not None and self._checks.blocks(deployment.job_template):
                raise blocks
            blocks = set()
        # A template may be rendered by now, but its variables were not looked up.
        if self._pending is not None:
            raise self._pending
        if allowed.variables.limited and self._unresolved.request.described:
            render = renderer(self._checks, self._unresolved, deployment)
            check_variables(self._unresolved.request.body.parameters, variables, allowed.variables, render)
        return run_of_deployment(
            self._unresolved, deployment, variables=variables, blocks=blocks, checks=self._checks
        )


class _Rest:
    """Gives the event loop a turn while many requests are looked at."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._since = monotonic()

    async def before(self, each: _Asked) -> None:
        """Wait for a turn before a large request, and after :data:`HELD_SECONDS`."""
        if each.size > LARGE:
            await self._pace.turn()
        elif monotonic() - self._since > HELD_SECONDS:
            await asyncio.sleep(0)
        else:
            return
        self._since = monotonic()


def _which(unresolved: UnresolvedRun) -> tuple[Any, ...]:
    """The deployment's id, or the names of its flow and itself."""
    body = unresolved.request.body
    return (body.deployment_id,) if body.deployment_name is None else tuple(body.deployment_name.split("/"))


async def _deployments(
    reader: Reader, unresolved: Sequence[UnresolvedRun], turns: Turns
) -> dict[tuple[Any, ...], Deployment | Undecided | Refusal]:
    """The requested deployments by id and by names, each read once. An unusable one is a refusal, a
    waiting one is undecided until its turn. The first one never waits.
    """
    asked = dict.fromkeys(_which(each) for each in sorted(unresolved, key=lambda each: each.now))
    found: dict[tuple[Any, ...], Deployment | Undecided | Refusal] = {}
    statements = reader.statements
    if len(asked) == 1:
        rows = await reader.find(statements.deployments, asked)
    else:
        sizes: dict[tuple[Any, ...], Row] = {}
        for row in await reader.find(statements.deployment_sizes, asked):
            sizes[row.id,] = sizes[row.flow_name, row.name] = row
        first: dict[UUID, int] = {}
        in_order = {sizes[each].id: sizes[each] for each in asked if each in sizes}.values()
        for row, waiting in in_turns(((row, row.size) for row in in_order), TEXTS_MAX, turns):
            if waiting is None:
                first[row.id] = len(first)
            else:
                found[row.id,] = found[row.flow_name, row.name] = waiting
        rows = await reader.find(statements.deployments, [(each,) for each in first])
        rows.sort(key=lambda row: first[row.id])
    templates = {row.pool_id: row.base_job_template for row in rows if row.base_job_template is not None}
    values = Budget(VALUES_MAX)
    crowded: Undecided | None = None
    rows.reverse()
    while rows:  # free the text of one before the next is decoded
        row = rows.pop()
        each: Deployment | Undecided | Refusal
        if values.take(decoded_size((row.parameters or "").encode())):
            each = _deployment(row, templates.get(row.pool_id))
        else:
            each = crowded = crowded or Undecided(NO_ROOM, turns.wait(first=True))
        found[row.id,] = found[row.flow_name, row.name] = each
    return found


def _deployment(row: Row, template: str | None) -> Deployment | Refusal:
    """A deployment, or a refusal that names the columns with invalid values."""
    try:
        parameters, deep = _parse(row.parameters or "{}")
    except ValueError as error:
        return Unprocessable(f"The deployment {row.id} can't be used: deployment.parameters: {error}")
    columns = {"parameters": parameters, "tags": row.tags, "labels": row.labels}
    if odd := [name for name, value in columns.items() if not _is_valid(name, value)]:
        names = ", ".join(f"deployment.{name}" for name in odd)
        return Unprocessable(f"The deployment {row.id} can't be used: no valid value in {names}")
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
        size=len(row.parameters or ""),
        deep=deep,
        described=may_describe(row.parameters or ""),
        parameter_schema=_text(row.parameter_openapi_schema),
        enforce_parameter_schema=row.enforce_parameter_schema,
        job_variables=_text(row.infra_overrides),
        infrastructure_document_id=row.infrastructure_document_id,
        work_queue_id=row.work_queue_id,
        work_queue_name=row.work_queue_name,
        queue=queue,
        job_template=_text(template),
    )


def _is_valid(column: str, value: Any) -> bool:
    if column == "tags":
        return value is None or (isinstance(value, list) and all(isinstance(tag, str) for tag in value))
    return value is None or isinstance(value, dict)


def _parse(text: str) -> tuple[Any, bool]:
    """The JSON's value, and true if it is nested too deeply for the quick parser."""
    try:
        return from_json(text), False
    except ValueError:
        return json.loads(text), True


def _text(json_text: str | None) -> str | None:
    """The JSON text; None for ``null``."""
    return None if json_text == "null" else json_text


async def _variables(reader: Reader, requests: Sequence[_Asked], rest: _Rest) -> dict[str, Any]:
    known: dict[str, Any] = {}
    asked: set[str] = set()
    # A variable's value may name other variables: that takes another round.
    while True:
        names: set[str] = set()
        for each in requests:
            await rest.before(each)
            names |= each.variable_names(known)
        names -= asked
        if not names:
            return known
        asked |= names
        try:
            found = await reader.rows(variable.c.name, names, variable.c.value)
        except Unreadable as unreadable:
            return _Unreadable(unreadable.refusal)
        known |= {row.name: row.value for row in found}


class _Unreadable(dict[str, Any]):
    """Stands for variables that can't be read. Each look-up raises the refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        self._refusal = refusal

    def __missing__(self, name: str) -> Any:
        raise self._refusal


def warn_of_unserved(runs: Iterable[NewRun], warned: set[UUID]) -> None:
    """Warn of SCHEDULED runs of deployments that have no work queue. Logs one line for each
    deployment.

    Args:
        warned: the deployments that were warned of; updated.
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
            "the deployment has no work pool"
            if new.inherits
            else "the request names no work_pool_name; with the type create_flow_run_from_deployment the run "
            "has the deployment's"
        )
        log.warning(
            "run_without_work_pool",
            deployment_id=str(deployment_id),
            flow_run_id=str(run.id),
            reason=reason,
            executed="only by a process that serves the deployment",
        )
