"""What is different in a Prefect server's database: rows that a run refers to, and rows that follow
from it.

Knows the rules (each named after the one in Prefect), not how a database is asked.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic_core import from_json

from worker.contract.allowed import Allowed
from worker.contract.decode import CreateRequest
from worker.contract.errors import IntegrityConflict, NotAllowed, Refusal, Unprocessable, WorkPoolNotFound
from worker.contract.flow_run import FlowRun
from worker.contract.request import CreateFlowRun
from worker.contract.state import TERMINAL_TYPES, StateType
from worker.runs.creation import NewRun, uuid7
from worker.runs.unusable import unusable
from worker.store.reading import Reader, Row, Unreadable
from worker.store.tables import (
    block_document,
    deployment,
    flow,
    metadata,
    prefect_metadata,
    task_run,
    work_pool,
    work_queue,
)

# Tables by which a Prefect server's database is known.
MARKS = frozenset({"alembic_version", "flow", "flow_run", "deployment", "work_pool"})

_SCHEDULED, _RUNNING = StateType.SCHEDULED.value, StateType.RUNNING.value


@dataclass(slots=True)
class References:
    """What the rows that a batch refers to say of it.

    Attributes:
        missing: by run id, a refusal for a run that refers to a row that isn't there. Such a run
            may exist already, and is then answered as it is, since Prefect inserts before it looks.
        refused: by run id, a refusal whether the run exists or not.
    """

    missing: dict[UUID, Refusal] = field(default_factory=dict)
    refused: dict[UUID, Refusal] = field(default_factory=dict)


async def resolve(reader: Reader, runs: Sequence[NewRun], allowed: Allowed) -> References:
    """Look up what the runs refer to, each kind once for all of them, and fill in what follows from
    it.

    Args:
        allowed: what producers may name.
    """
    references = References()
    # Runs of deployments have their labels and queues from these.
    requests = [(new.run, new.request.body) for new in runs if isinstance(new.request, CreateRequest)]
    pool, queue = work_pool.c, work_queue.c
    names = (body.work_pool_name for _, body in requests)
    pools = await _by(reader, pool.name, names, pool.id, pool.default_queue_id)
    pool_ids = [each.id for each in pools.values()]
    queues: Sequence[Row] = ()
    unreadable = pools.refusal
    try:
        queues = await reader.rows(queue.work_pool_id, pool_ids, queue.id, queue.name)
    except Unreadable as error:
        unreadable = error.refusal
    for run, body in requests:
        refusal = unreadable if body.work_pool_name else None
        if refusal := refusal or _fill_work_queue(run, body, pools, queues):
            references.refused[run.id] = refusal
    ids, of = (body.deployment_id for _, body in requests), deployment.c
    deployments = await _by(reader, of.id, ids, of.flow_id, _text(of.labels), _text(of.tags), of.name)
    flow_ids = {*(new.run.flow_id for new in runs), *(each.flow_id for each in deployments.values())}
    columns = _text(flow.c.labels), _text(flow.c.tags), flow.c.name
    of_flows = await reader.rows(flow.c.id, flow_ids, *columns)
    flows = {row.id: row for row in of_flows}
    references.refused |= _not_allowed((run for run, _ in requests), flows, deployments, allowed)
    parents = (new.run.parent_task_run_id for new in runs)
    tasks = await _by(reader, task_run.c.id, parents, _text(task_run.c.tags))
    documents = await _by(reader, block_document.c.id, (new.run.infrastructure_document_id for new in runs))
    for run, body in requests:
        try:
            run.labels = _labels(run, body, flows.get(run.flow_id), deployments.get(run.deployment_id))
        except Refusal as refusal:
            references.refused[run.id] = refusal.freed()
    for new in runs:
        run = new.run
        if run.flow_id not in flows:
            references.missing[run.id] = IntegrityConflict(f"There is no flow {run.flow_id}.")
        for what, value, found in (
            ("deployment", run.deployment_id if deployments.refusal else None, deployments),
            ("parent task run", run.parent_task_run_id, tasks),
            ("infrastructure document", run.infrastructure_document_id, documents),
        ):
            if value is not None and value not in found:
                conflict = IntegrityConflict(f"There is no {what} {value}.")
                references.missing.setdefault(run.id, found.refusal or conflict)
        rows = flows.get(run.flow_id), deployments.get(run.deployment_id), tasks.get(run.parent_task_run_id)
        if why := unusable(new, [_tags(row) for row in rows if row is not None]):
            references.missing.setdefault(run.id, why)
    return references


@cache
def _text(column: sa.Column[Any]) -> sa.Label[str]:
    """JSON as text: a row that can't be read would fail the query for all."""
    return sa.cast(column, sa.Text).label(column.name)


def _tags(row: Row) -> Sequence[str]:
    """Tags as far as they are valid: an event of Prefect's has no others."""
    try:
        tags = from_json(row.tags or "null")
    except ValueError:
        return ()
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else ()


def _labels_of(table: sa.Table, row: Row) -> dict[str, Any]:
    try:
        labels = from_json(row.labels or "null")
    except ValueError:
        labels = ()
    if labels is None or isinstance(labels, dict):
        return labels or {}
    raise Unprocessable(f"The {table.name} {row.id} can't be used: no valid value in {table.name}.labels")


def _check_allowed(
    run: FlowRun, flows: Mapping[UUID, Row], deployments: Mapping[UUID, Row], allowed: Allowed
) -> None:
    """Raise NotAllowed over the flow and the deployment that a request has by their ids. One that
    is not there has no name, and so its id in place of one.
    """
    if allowed.flows.limited:
        of = flows.get(run.flow_id)
        allowed.flows.check("flow", of.name if of else str(run.flow_id))
    if allowed.deployments.limited and run.deployment_id is not None:
        name = str(run.deployment_id)
        if of := deployments.get(run.deployment_id):
            theirs = flows.get(of.flow_id)
            name = f"{theirs.name if theirs else of.flow_id}/{of.name}"
        allowed.deployments.check("deployment", name)


def check_standalone(runs: Iterable[NewRun], allowed: Allowed) -> References:
    """In a database of our own, ids stand for names."""
    return References(refused=_not_allowed((new.run for new in runs), {}, {}, allowed))


def _not_allowed(
    runs: Iterable[FlowRun], flows: Mapping[UUID, Row], deployments: Mapping[UUID, Row], allowed: Allowed
) -> dict[UUID, Refusal]:
    refused: dict[UUID, Refusal] = {}
    for run in runs if allowed.flows.limited or allowed.deployments.limited else ():
        try:
            _check_allowed(run, flows, deployments, allowed)
        except NotAllowed as refusal:
            refused[run.id] = refusal.with_traceback(None)
    return refused


class _Rows(dict[Any, Row]):
    """Rows by what they were looked up by.

    Attributes:
        refusal: what requests are answered that refer to one, if none can be read; else None.
    """

    refusal: Refusal | None = None


async def _by(
    reader: Reader, key: sa.Column[Any], values: Iterable[Any], *columns: sa.ColumnElement[Any]
) -> _Rows:
    found = _Rows()
    try:
        rows = await reader.rows(key, {value for value in values if value}, *columns)
    except Unreadable as unreadable:
        found.refusal = unreadable.refusal
    else:
        found.update((row[0], row) for row in rows)
    return found


def _fill_work_queue(
    run: FlowRun, body: CreateFlowRun, pools: Mapping[str, Row], queues: Sequence[Row]
) -> Refusal | None:
    """``WorkerLookups``: a queue by the names of pool and queue, or the pool's default queue."""
    pool_name, queue_name = body.work_pool_name, body.work_queue_name
    if not pool_name:
        return None
    pool = pools.get(pool_name)
    if pool is None and not queue_name:
        return WorkPoolNotFound(f'Work pool "{pool_name}" not found.')
    for queue in queues:
        if pool is not None and (
            (queue.work_pool_id == pool.id and queue.name == queue_name)
            if queue_name
            else queue.id == pool.default_queue_id
        ):
            run.work_queue_id, run.pool_queue_name = queue.id, queue.name
            run.work_pool_id, run.work_pool_name = pool.id, pool.name
            return None
    return WorkPoolNotFound(f"Work pool queue '{pool_name}/{queue_name}' not found.") if queue_name else None


def _labels(
    run: FlowRun, body: CreateFlowRun, flow_row: Row | None, deployment_row: Row | None
) -> dict[str, Any]:
    """``with_system_labels_for_flow_run`` and ``with_system_labels_for_deployment_flow_run``."""
    of_flow = {"prefect.flow.id": str(run.flow_id)}
    inherited = _labels_of(flow, flow_row) if flow_row is not None else {}
    if deployment_row is not None:
        of_flow = {
            "prefect.flow.id": str(deployment_row.flow_id),
            "prefect.deployment.id": str(deployment_row.id),
        }
        inherited = _labels_of(deployment, deployment_row)
    return {**inherited, **of_flow, **(body.labels or {})}


def follow(task: Mapping[str, Any], new: NewRun, now: datetime) -> tuple[dict[str, Any], dict[str, Any]]:
    """``UpdateSubflowParentTask``: a subflow's parent task run takes over the subflow's state.

    Args:
        task: the parent's row.

    Returns:
        The parent's new state, and what changes in the parent's row (``GlobalTaskPolicy``).
    """
    state = new.run.state
    assert state is not None
    details = {
        **state.state_details,
        "child_flow_run_id": str(new.run.id),
        "flow_run_id": str(task["flow_run_id"]) if task["flow_run_id"] else None,
        "task_run_id": str(task["id"]),
    }
    state_row = {
        "id": uuid7(now),
        "created": now,
        "updated": now,
        "task_run_id": task["id"],
        "type": state.type,
        "timestamp": now,
        "name": state.name,
        "message": state.message,
        "state_details": details,
        "data": state.data,
    }
    was_running = task["state_type"] == _RUNNING and task["state_timestamp"] is not None
    ends = state.type in TERMINAL_TYPES
    start_time, end_time = task["start_time"], task["end_time"]
    if task["state_type"] in TERMINAL_TYPES and not ends:
        end_time = None
    if start_time is None and (state.type == _RUNNING or (ends and end_time is None)):
        start_time = now
    if ends and end_time is None:
        end_time = now
    scheduled_time = new.run.next_scheduled_start_time
    next_scheduled = None if task["state_type"] == _SCHEDULED else task["next_scheduled_start_time"]
    changes = {
        "updated": now,
        "state_id": state_row["id"],
        "state_type": state.type,
        "state_name": state.name,
        "state_timestamp": now,
        "run_count": task["run_count"] + (state.type == _RUNNING),
        "expected_start_time": task["expected_start_time"] or scheduled_time or now,
        "next_scheduled_start_time": scheduled_time if state.type == _SCHEDULED else next_scheduled,
        "start_time": start_time,
        "end_time": end_time,
        "total_run_time": task["total_run_time"]
        + (now - task["state_timestamp"] if was_running else timedelta(0)),
    }
    return state_row, changes


def newer_columns(inspector: sa.Inspector) -> frozenset[str]:
    """The columns of :func:`worker.contract.flow_run.since` that the tables of a database lack, as
    ``TABLE.COLUMN``.
    """
    lacks: set[str] = set()
    for table in metadata.tables.values():
        since = {column.name: str(column) for column in table.columns if column.info}
        if since and inspector.has_table(table.name):
            here = {column["name"] for column in inspector.get_columns(table.name)}
            lacks.update(name for column, name in since.items() if column not in here)
    return frozenset(lacks)


def problems(inspector: sa.Inspector) -> list[str]:
    """What a Prefect server's database lacks of what the worker reads and writes; a line each."""
    found: list[str] = []
    tables = set(inspector.get_table_names())
    for table in (*metadata.tables.values(), *prefect_metadata.tables.values()):
        if table.name not in tables:
            found.append(f"no table {table.name}")
            continue
        columns = {column["name"]: column["type"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in columns:
                if not column.info:
                    found.append(f"no column {table.name}.{column.name}")
            elif inspector.dialect.name == "postgresql" and (wanted := _family(column.type)) != (
                is_now := _family(columns[column.name])
            ):
                found.append(f"{table.name}.{column.name} is {is_now}, not {wanted}")
    return found


def _family(type_: sa.types.TypeEngine[Any]) -> str:
    families = ((sa.JSON, "json"), (sa.Integer, "integer"), (sa.Enum, "enum"), (sa.String, "text"))
    named = type(type_).__name__.lower()
    return next((family for kind, family in families if isinstance(type_, kind)), named)
