"""Completes runs in a Prefect server's database from the rows that they refer to, and updates the
parents of subflows. Checks that database's tables. Each rule has the name of Prefect's own.
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
from worker.contract.errors import NotAllowed, Refusal
from worker.contract.state import TERMINAL_TYPES, StateType
from worker.runs.completion import Found, Lookups, Referred, check_allowed, complete, missing, needs_queue
from worker.runs.creation import NewRun, uuid7
from worker.store.reading import Reader, Row, Unreadable
from worker.store.tables import block_document, deployment, flow, metadata, prefect_metadata, task_run
from worker.store.work_queues import find_or_make_queues, find_queues

# A database with these tables is a Prefect server's.
MARKS = frozenset({"alembic_version", "flow", "flow_run", "deployment", "work_pool"})

_SCHEDULED, _RUNNING = StateType.SCHEDULED.value, StateType.RUNNING.value


@dataclass(slots=True)
class Refusals:
    """Refusals of runs of a batch, by the runs' ids.

    Attributes:
        missing: apply unless the run exists: see :func:`worker.runs.completion.missing`.
        refused: apply in any case.
    """

    missing: dict[UUID, Refusal] = field(default_factory=dict)
    refused: dict[UUID, Refusal] = field(default_factory=dict)


async def complete_runs(reader: Reader, runs: Sequence[NewRun], allowed: Allowed) -> Refusals:
    """Look up the rows that the runs refer to, each kind once for all runs. Complete the runs.

    Args:
        allowed: the names that producers may use.
    """
    refusals = Refusals()
    lookups = await _look_up(reader, runs)
    named = [new.run for new in runs if needs_queue(new) and not missing(new, lookups)]
    lookups.queues |= await find_or_make_queues(reader, named)
    for new in runs:
        try:
            complete(new, lookups, allowed)
        except Refusal as refusal:
            refusals.refused[new.run.id] = refusal.freed()
        if why := missing(new, lookups):
            refusals.missing[new.run.id] = why
    return refusals


def check_standalone(runs: Iterable[NewRun], allowed: Allowed) -> Refusals:
    """Check the allowed names in a database of our own, which has ids only."""
    refusals, nothing = Refusals(), Lookups()
    for new in runs:
        try:
            check_allowed(new.run, nothing, allowed)
        except NotAllowed as refusal:
            refusals.refused[new.run.id] = refusal.freed()
    return refusals


async def _look_up(reader: Reader, runs: Sequence[NewRun]) -> Lookups:
    # Runs that inherit have the labels and the work pool of their deployment already.
    others = [new for new in runs if not new.inherits]
    ids, of = (new.run.deployment_id for new in others), deployment.c
    deployments = await _by(reader, of.id, ids, of.flow_id, of.labels, of.tags, of.name)
    flow_ids = {*(new.run.flow_id for new in runs), *(each.flow_id for each in deployments.values())}
    flows = await reader.rows(flow.c.id, flow_ids, *map(_text, (flow.c.labels, flow.c.tags)), flow.c.name)
    parents = (new.run.parent_task_run_id for new in runs)
    documents = (new.run.infrastructure_document_id for new in runs)
    return Lookups(
        flows={each.id: _row(each) for each in flows},
        deployments=deployments,
        tasks=await _by(reader, task_run.c.id, parents, task_run.c.tags),
        documents=await _by(reader, block_document.c.id, documents),
        queues=await find_queues(
            reader, {name for new in others if (name := new.request.body.work_pool_name)}
        ),
    )


async def _by(
    reader: Reader, key: sa.Column[Any], values: Iterable[Any], *columns: sa.Column[Any]
) -> Found[UUID, Referred]:
    found = Found[UUID, Referred]()
    try:
        rows = await reader.rows(key, {value for value in values if value}, *map(_text, columns))
    except Unreadable as unreadable:
        found.refusal = unreadable.refusal
    else:
        found.update((row[0], _row(row)) for row in rows)
    return found


@cache
def _text(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """JSON as text: a row that can't be read would fail the query for all."""
    return sa.cast(column, sa.Text).label(column.name) if isinstance(column.type, sa.JSON) else column


def _row(row: Row) -> Referred:
    values = dict(row._mapping)
    if "labels" in values:
        labels = _parsed(values["labels"])
        values["labels"] = labels if isinstance(labels, dict) else {} if labels is None else None
    if "tags" in values:
        tags = _parsed(values["tags"])
        values["tags"] = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else ()
    return Referred(**values)


def _parsed(text: str | None) -> Any:
    """A JSON value. Invalid JSON stays text, which is no valid value for any column."""
    try:
        return from_json(text or "null")
    except ValueError:
        return text


def follow(task: Mapping[str, Any], new: NewRun, now: datetime) -> tuple[dict[str, Any], dict[str, Any]]:
    """``UpdateSubflowParentTask``: a subflow's parent task run takes over the subflow's state.

    Args:
        task: the parent's row.

    Returns:
        The parent's new state, and the changes of the parent's row (``GlobalTaskPolicy``).
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
    """The columns of :func:`worker.contract.flow_run.since` that the database's tables lack, as
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
    """Tables and columns that the worker needs but the database lacks, a line each."""
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
