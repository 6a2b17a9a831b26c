"""What is different in a Prefect server's database: rows that a run refers to, and rows that follow
from it.

Knows the rules (each named after the one in Prefect), not how a database is asked.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol
from uuid import UUID
from warnings import catch_warnings, simplefilter

import sqlalchemy as sa

from worker.contract.decode import CreateRequest
from worker.contract.errors import IntegrityConflict, Refusal, WorkPoolNotFound
from worker.contract.flow_run import FlowRun
from worker.contract.request import CreateFlowRun
from worker.contract.state import TERMINAL_TYPES, StateType
from worker.creation import NewRun, uuid7
from worker.store import deployment_tables
from worker.store.tables import (
    UNIQUE_INDEX,
    Json,
    State,
    Text,
    Timestamp,
    Uuid,
    flow_run,
    flow_run_state,
    part_of,
)

metadata = sa.MetaData()
_table = partial(part_of, metadata)

# The columns that are read or written, of the tables that are; all are checked before anything is.
flow = _table("flow", {Uuid: "id", Json: "labels"})
deployment = _table("deployment", {Uuid: "id flow_id", Json: "labels"})
block_document = _table("block_document", {Uuid: "id"})
work_pool = _table("work_pool", {Uuid: "id default_queue_id", Text: "name"})
work_queue = _table("work_queue", {Uuid: "id work_pool_id", Text: "name"})
artifact = _table("artifact", {Uuid: "id", sa.JSON: "data"})
_TIMES = "expected_start_time next_scheduled_start_time start_time end_time"
task_run = _table(
    "task_run",
    {
        Uuid: "id flow_run_id state_id",
        Timestamp: f"updated state_timestamp {_TIMES}",
        State: "state_type",
        Text: "state_name",
        sa.Integer: "run_count",
        sa.Interval: "total_run_time",
    },
)
task_run_state = _table(
    "task_run_state",
    {
        Uuid: "id task_run_id",
        Timestamp: "created updated timestamp",
        State: "type",
        Text: "name message",
        Json: "state_details data",
    },
)

# Tables by which a Prefect server's database is known.
MARKS = frozenset({"alembic_version", "flow", "flow_run", "deployment", "work_pool"})
CHECKED = (
    *(flow_run, flow_run_state),
    *metadata.tables.values(),
    *deployment_tables.metadata.tables.values(),
)

_SCHEDULED, _RUNNING = StateType.SCHEDULED.value, StateType.RUNNING.value

Row = Mapping[str, Any]


class Lookup(Protocol):
    """Asks the database."""

    async def rows(self, column: sa.Column[Any], values: Iterable[Any]) -> list[Row]:
        """The rows of a table in which a column has one of these values, with the columns of the
        table's definition.
        """


@dataclass(slots=True)
class References:
    """What the rows that a batch refers to say of it.

    Attributes: missing: by run id, a refusal for a run that refers to a row that isn't there. One
        with such a refusal may exist already, and is then answered as it is, since Prefect inserts
        before it looks. refused: by run id, a refusal whether the run exists or not.
    """

    missing: dict[UUID, Refusal] = field(default_factory=dict)
    refused: dict[UUID, Refusal] = field(default_factory=dict)


async def resolve(lookup: Lookup, runs: Sequence[NewRun]) -> References:
    """Look up what the runs refer to, each kind once for all of them, and fill in what follows from
    it.
    """
    references = References()
    # Runs of deployments have their labels and queues from these.
    requests = [(new.run, new.request.body) for new in runs if isinstance(new.request, CreateRequest)]
    pools = await _by(lookup, work_pool.c.name, (body.work_pool_name for _, body in requests))
    queues = await lookup.rows(work_queue.c.work_pool_id, [pool["id"] for pool in pools.values()])
    for run, body in requests:
        if refusal := _fill_work_queue(run, body, pools, queues):
            references.refused[run.id] = refusal
    flows = await _by(lookup, flow.c.id, (new.run.flow_id for new in runs))
    deployments = await _by(lookup, deployment.c.id, (body.deployment_id for _, body in requests))
    tasks = await _by(lookup, task_run.c.id, (new.run.parent_task_run_id for new in runs))
    documents = await _by(lookup, block_document.c.id, (new.run.infrastructure_document_id for new in runs))
    for run, body in requests:
        run.labels = _labels(run, body, flows.get(run.flow_id), deployments.get(run.deployment_id))
    for new in runs:
        run = new.run
        for what, value, found in (
            ("flow", run.flow_id, flows),
            ("parent task run", run.parent_task_run_id, tasks),
            ("infrastructure document", run.infrastructure_document_id, documents),
        ):
            if value is not None and value not in found:
                references.missing.setdefault(run.id, IntegrityConflict(f"There is no {what} {value}."))
    return references


async def _by(lookup: Lookup, column: sa.Column[Any], values: Iterable[Any]) -> dict[Any, Row]:
    found = await lookup.rows(column, {value for value in values if value})
    return {row[column.name]: row for row in found}


def _fill_work_queue(
    run: FlowRun, body: CreateFlowRun, pools: Mapping[str, Row], queues: Sequence[Row]
) -> Refusal | None:
    """``WorkerLookups``: a queue by the names of pool and queue, or the pool's default queue."""
    pool_name, queue_name = body.work_pool_name, body.work_queue_name
    if not pool_name:
        return None
    pool = pools.get(pool_name)
    if queue_name:
        found = [
            row for row in queues if pool and row["work_pool_id"] == pool["id"] and row["name"] == queue_name
        ]
        if not found:
            return WorkPoolNotFound(f"Work pool queue '{pool_name}/{queue_name}' not found.")
    elif pool is None:
        return WorkPoolNotFound(f'Work pool "{pool_name}" not found.')
    else:
        found = [row for row in queues if row["id"] == pool["default_queue_id"]]
    if pool is not None and found:
        run.work_queue_id, run.pool_queue_name = found[0]["id"], found[0]["name"]
        run.work_pool_id, run.work_pool_name = pool["id"], pool["name"]
    return None


def _labels(
    run: FlowRun, body: CreateFlowRun, flow_row: Row | None, deployment_row: Row | None
) -> dict[str, Any]:
    """``with_system_labels_for_flow_run`` and ``with_system_labels_for_deployment_flow_run``."""
    own = body.labels or {}
    if deployment_row is not None:
        system = {
            "prefect.flow.id": str(deployment_row["flow_id"]),
            "prefect.deployment.id": str(deployment_row["id"]),
        }
        return {**(deployment_row["labels"] or {}), **system, **own}
    inherited = (flow_row["labels"] if flow_row else None) or {}
    return {**inherited, "prefect.flow.id": str(run.flow_id), **own}


def follow(task: Row, new: NewRun, now: datetime) -> tuple[Row, Row]:
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
    end_time = (
        None
        if task["state_type"] in TERMINAL_TYPES and state.type not in TERMINAL_TYPES
        else task["end_time"]
    )
    start_time = task["start_time"]
    if start_time is None and (state.type == _RUNNING or (state.type in TERMINAL_TYPES and end_time is None)):
        start_time = now
    if state.type in TERMINAL_TYPES and end_time is None:
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


def problems(inspector: sa.Inspector) -> list[str]:
    """What a Prefect server's database lacks of what the worker reads and writes; a line each."""
    found: list[str] = []
    tables = set(inspector.get_table_names())
    for table in CHECKED:
        if table.name not in tables:
            found.append(f"no table {table.name}")
            continue
        columns = {column["name"]: column["type"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in columns:
                found.append(f"no column {table.name}.{column.name}")
            elif inspector.dialect.name == "postgresql" and (wanted := _family(column.type)) != (
                is_now := _family(columns[column.name])
            ):
                found.append(f"{table.name}.{column.name} is {is_now}, not {wanted}")
    with catch_warnings():
        # Prefect's indexes of expressions, which SQLAlchemy passes over on SQLite with a warning
        # each.
        simplefilter("ignore", sa.exc.SAWarning)
        indexes = (
            {index["name"] for index in inspector.get_indexes(flow_run.name)}
            if flow_run.name in tables
            else {UNIQUE_INDEX}
        )
    if UNIQUE_INDEX not in indexes:
        found.append(f"no unique index {UNIQUE_INDEX}")
    return list(dict.fromkeys(found))


def _family(type_: sa.types.TypeEngine[Any]) -> str:
    families = (
        (sa.Uuid, "uuid"),
        (sa.TIMESTAMP, "timestamp"),
        (sa.JSON, "json"),
        (sa.Interval, "interval"),
        (sa.Boolean, "boolean"),
        (sa.Integer, "integer"),
        (sa.Enum, "enum"),
        (sa.String, "text"),
    )
    name = type(type_).__name__.lower()
    return next(
        (family for kind, family in families if isinstance(type_, kind)),
        "interval" if name == "interval" else name,
    )
