"""Finds the work queues that requests name. Makes missing ones for runs of deployments, as
Prefect's endpoint does.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
import structlog
from asyncpg import InsufficientPrivilegeError
from sqlalchemy.dialects import postgresql, sqlite

from worker.contract.errors import Refusal, WorkPoolNotFound
from worker.contract.flow_run import FlowRun
from worker.runs.completion import Found, banned_queue_name
from worker.runs.creation import uuid7
from worker.runs.deployments.deployment import WorkQueue
from worker.store.engine import Database
from worker.store.errors import Blame, blame, driver_error, fault, is_fault, refusal
from worker.store.reading import Reader, Unreadable
from worker.store.tables import work_pool, work_queue

log = structlog.get_logger(__name__)

Queues = Found[tuple[str, str], WorkQueue | Refusal | None]


async def find_queues(reader: Reader, pool_names: Collection[str]) -> Queues:
    """The queues of these work pools: see :class:`worker.runs.completion.Lookups`. Raises Fault as
    the reader does.
    """
    queues, of = Queues(), work_pool.c
    try:
        pools = await reader.rows(of.name, pool_names, of.id, of.default_queue_id)
        rows = await _rows(reader, {pool.id: pool.name for pool in pools})
    except Unreadable as unreadable:
        queues.refusal = unreadable.refusal
        return queues
    by_id = {queue.id: queue for queue, _ in rows}
    queues.update({(pool.name, ""): by_id.get(pool.default_queue_id) for pool in pools})
    queues.update({(queue.pool_name, queue.name): queue for queue, _ in rows})
    return queues


async def find_or_make_queues(reader: Reader, runs: Sequence[FlowRun]) -> Queues:
    """The queues that runs of deployments name in their work pools. A missing one that can't be
    made is a refusal.

    Raises:
        Fault: the database is away or busy.
    """
    queues = Queues()
    named = {(run.work_pool_name or "", run.work_queue_name or ""): run for run in runs}
    try:
        rows = await _rows(reader, {run.work_pool_id: run.work_pool_name for run in runs})
    except Unreadable as unreadable:
        queues.update(dict.fromkeys(named, unreadable.refusal))
        return queues
    queues.update({(queue.pool_name, queue.name): queue for queue, _ in rows})
    for key, run in named.items():
        if key not in queues:
            # A batch may make several queues of one pool.
            taken = [priority for queue, priority in rows if queue.pool_id == run.work_pool_id]
            priority = free_priority(taken)
            made = queues[key] = await _make(reader.database, run, priority)
            if isinstance(made, WorkQueue):
                rows.append((made, priority))
    return queues


async def _rows(reader: Reader, pools: Mapping[Any, Any]) -> list[tuple[WorkQueue, int]]:
    """The queues of work pools, with their priorities. ``pools`` are the pools' names by id."""
    of = work_queue.c
    rows = await reader.rows(of.work_pool_id, pools, of.id, of.name, of.priority)
    return [
        (WorkQueue(row.id, row.name, row.work_pool_id, pools[row.work_pool_id]), row.priority) for row in rows
    ]


def free_priority(taken: Iterable[int]) -> int:
    """The lowest free priority (Prefect's ``create_work_queue``)."""
    places = enumerate([*sorted(taken), None], start=1)
    return next(place for place, priority in places if priority != place)


async def _make(database: Database, run: FlowRun, priority: int) -> WorkQueue | Refusal:
    """Make the queue that a run names, unless another worker has just made it."""
    name, pool_id = run.work_queue_name or "", run.work_pool_id
    assert pool_id is not None
    if banned := banned_queue_name(name):
        return banned
    now = datetime.now(UTC)
    row = {
        "id": uuid7(now),
        "created": now,
        "updated": now,
        "name": name,
        "work_pool_id": pool_id,
        "priority": priority,
    }
    insert = sqlite.insert if database.sqlite else postgresql.insert
    made = sa.select(work_queue.c.id).filter_by(work_pool_id=pool_id, name=name)
    try:
        async with database.connect() as connection:
            await connection.execute(insert(work_queue).values(row).on_conflict_do_nothing())
            queue_id: UUID = (await connection.execute(made)).scalar_one()
    except Exception as error:
        if isinstance(driver_error(error), InsufficientPrivilegeError):
            return WorkPoolNotFound(
                f"Work pool queue '{run.work_pool_name}/{name}' not found, and the worker may not make it: "
                "make it, or GRANT INSERT ON work_queue to the worker's user; then send the request again."
            )
        if is_fault(error):
            raise fault(error) from error
        if blame(error) is Blame.row:
            return refusal(error)
        raise  # the line finds the request that is to blame
    log.info("work_queue_made", work_pool=run.work_pool_name, work_queue=name)
    return WorkQueue(queue_id, name, pool_id, run.work_pool_name or "")
