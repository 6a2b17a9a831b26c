"""Finds the work queues that requests name for runs of deployments, and makes those that are not
there, as Prefect's endpoint does.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from uuid import UUID

import sqlalchemy as sa
import structlog
from asyncpg import InsufficientPrivilegeError
from sqlalchemy.dialects import postgresql, sqlite

from worker.contract.errors import Refusal, Unprocessable, WorkPoolNotFound
from worker.contract.flow_run import FlowRun
from worker.runs.creation import uuid7
from worker.store.engine import Database
from worker.store.errors import Blame, blame, driver_error, fault, is_fault, refusal
from worker.store.reading import Reader, Unreadable
from worker.store.tables import work_queue

log = structlog.get_logger(__name__)

# What the names of Prefect's objects must not have, as they stand in its URLs.
BANNED_CHARACTERS = "/%&><"


async def fill_work_queues(reader: Reader, runs: Sequence[FlowRun]) -> dict[UUID, Refusal]:
    """Fill in the queues of runs that have a work pool, and a queue's name in place of a queue.

    Returns:
        By run id, a refusal for a run whose queue is not there and can't be made.

    Raises:
        Fault: the database is away or busy.
    """
    lacking = [run for run in runs if run.work_pool_id is not None and run.work_queue_id is None]
    of = work_queue.c
    pool_ids = {run.work_pool_id for run in lacking}
    try:
        rows = await reader.rows(of.work_pool_id, pool_ids, of.name, of.id, of.priority)
    except Unreadable as unreadable:
        return {run.id: unreadable.refusal for run in lacking}
    queues: dict[tuple[UUID | None, str | None], UUID | Refusal]
    queues = {(row.work_pool_id, row.name): row.id for row in rows}
    priorities: dict[UUID | None, list[int]] = defaultdict(list)
    for row in rows:
        priorities[row.work_pool_id].append(row.priority)
    refused: dict[UUID, Refusal] = {}
    for run in lacking:
        key = run.work_pool_id, run.work_queue_name
        if key not in queues:
            taken = priorities[run.work_pool_id]
            priority = free_priority(taken)
            queues[key] = await _make(reader.database, run, priority)
            taken.append(priority)  # a batch may want several
        queue = queues[key]
        if isinstance(queue, Refusal):
            refused[run.id] = queue
        else:
            run.work_queue_id, run.pool_queue_name = queue, run.work_queue_name
    return refused


def free_priority(taken: Iterable[int]) -> int:
    """The first that is free (``create_work_queue``)."""
    places = enumerate([*sorted(taken), None], start=1)
    return next(place for place, priority in places if priority != place)


async def _make(database: Database, run: FlowRun, priority: int) -> UUID | Refusal:
    """Make the queue that a run names, unless another worker has just made it."""
    name, pool_id = run.work_queue_name or "", run.work_pool_id
    if any(each in BANNED_CHARACTERS for each in name):
        return Unprocessable(
            f"There is no work queue '{name}', and none may have {BANNED_CHARACTERS} in its name."
        )
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
        raise  # the line finds whose it is
    log.info("work_queue_made", work_pool=run.work_pool_name, work_queue=name)
    return queue_id
