"""Reads what the events of runs say besides the runs themselves: the rows that they refer to, each
kind once for all of them, and the state that each began with.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from worker.contract.flow_run import FlowRunState
from worker.contract.related import References, Related, RelatedRows
from worker.store.statements import Statements
from worker.store.tables import Json, Text, Uuid, flow_run_state, part_of

metadata = sa.MetaData()
_table = partial(part_of, metadata)

# No more columns than an event says: a look-up reads all of them.
flow = _table("flow", {Uuid: "id", Text: "name", Json: "tags"})
deployment = _table("deployment", {Uuid: "id", Text: "name", Json: "tags"})
task_run = _table("task_run", {Uuid: "id", Text: "name", Json: "tags"})
work_queue = _table("work_queue", {Uuid: "id work_pool_id", Text: "name"})
work_pool = _table("work_pool", {Uuid: "id", Text: "name type"})

# Asks the database for the rows of a query with these values.
Query = Callable[[sa.Select[Any], Sequence[Sequence[Any]]], Awaitable[Sequence[Any]]]


async def read_related(query: Query, statements: Statements, wanted: References) -> RelatedRows:
    """Read what these references lead to, and the work pools of the work queues."""

    async def read(table: sa.Table, ids: Iterable[UUID]) -> dict[UUID, Related]:
        rows = await query(statements.lookup(table.c.id), [(each,) for each in ids])
        return {row.id: _related(row._mapping) for row in rows}

    queues = await read(work_queue, wanted.work_queues)
    pools = {queue.work_pool_id for queue in queues.values() if queue.work_pool_id}
    return RelatedRows(
        flows=await read(flow, wanted.flows),
        deployments=await read(deployment, wanted.deployments),
        work_queues=queues,
        work_pools=await read(work_pool, pools),
        task_runs=await read(task_run, wanted.task_runs),
    )


async def read_first_states(
    query: Query, statements: Statements, run_ids: Iterable[UUID]
) -> dict[UUID, FlowRunState]:
    """The state that each of these runs began with, by the run's id."""
    earlier = flow_run_state.alias("earlier")
    began = (
        sa.select(sa.func.min(earlier.c.timestamp))
        .where(earlier.c.flow_run_id == flow_run_state.c.flow_run_id)
        .scalar_subquery()
    )
    select = statements.lookup(flow_run_state.c.flow_run_id).where(flow_run_state.c.timestamp == began)
    rows = await query(select, [(each,) for each in run_ids])
    return {row.flow_run_id: FlowRunState(*row) for row in rows}


def _related(row: Any) -> Related:
    return Related(
        id=row["id"],
        name=row["name"],
        tags=tuple(row.get("tags") or ()),
        work_pool_id=row.get("work_pool_id"),
        type=row.get("type") or "",
    )
