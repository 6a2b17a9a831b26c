"""Deletes old runs, in a database of either kind: which are old, and what goes with them.

Each batch is a transaction of its own, so that nobody waits for long, and what is interrupted goes
on from where it was.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import sqlalchemy as sa

from worker.contract.state import TERMINAL_TYPES
from worker.observability.redaction import redact
from worker.store import migrations
from worker.store.engine import Database, open_database, parse_url
from worker.store.errors import Blame, StoreError, blame, driver_error, fault, first_line
from worker.store.tables import Text, Uuid, artifact, flow_run, part_of
from worker.tasks.backoff import Backoff

# To count the runs of a large table takes longer than any statement of a worker; seconds.
STATEMENT_TIMEOUT = 3600
# How many logs or artifacts of Prefect go in one transaction. A run may have any number of them.
ROWS_MAX = 5_000
# How often a batch is tried again that met a lock or a lost connection; some seconds together.
TRIES_MAX = 6

# Tables of Prefect whose rows name a run without a foreign key, so that they would stay behind.
# (These two are not checked at the start of a worker.)
_metadata = sa.MetaData()
_log = part_of("log", {Uuid: "id flow_run_id"}, _metadata)
_artifact_collection = part_of("artifact_collection", {Text: "key", Uuid: "latest_id"}, _metadata)


@dataclass(frozen=True, slots=True)
class OldRuns:
    """How many old runs are in a state, and whether they are to be deleted."""

    state: str
    count: int
    chosen: bool


class Pruning:
    """Deletes the runs that are older than a point in time and in one of some states.

    A run in a final state is as old as its end, as ``vacuum_old_flow_runs`` of Prefect has it. Any
    other is as old as its state, and no older than the time that it is scheduled for. In a Prefect
    server's database a subflow waits until its parent's task run is gone, as there.

    Use :func:`open_pruning`.

    Args:
        prefect: the database is a Prefect server's.
        before: aware.
        states: types of states.
    """

    def __init__(
        self, database: Database, *, prefect: bool, before: datetime, states: Collection[str]
    ) -> None:
        self._database = database
        self._prefect = prefect
        # As text: a newer Prefect may have more of them, and asyncpg would look up what they are.
        self._state = sa.cast(flow_run.c.state_type, sa.String)
        self._states = frozenset(states)
        final = self._state.in_(TERMINAL_TYPES)
        due = flow_run.c.next_scheduled_start_time
        self._old = sa.or_(
            sa.and_(final, flow_run.c.end_time < before),
            sa.and_(~final, flow_run.c.state_timestamp < before, sa.or_(due.is_(None), due < before)),
        )
        if prefect:
            self._old = sa.and_(self._old, flow_run.c.parent_task_run_id.is_(None))
        self._doomed = sa.and_(self._old, self._state.in_(self._states))

    async def count(self) -> Sequence[OldRuns]:
        """The old runs by their states, also those that stay because of their state."""
        query = sa.select(self._state, sa.func.count()).where(self._old)
        # The engine has it off, for what a worker asks. This reads the whole table.
        planning = () if self._database.sqlite else (sa.text("SET LOCAL enable_seqscan = on"),)
        found = await self._execute(*planning, query.group_by(self._state).order_by(self._state))
        return [OldRuns(state, count, state in self._states) for state, count in found]

    async def batches(self, size: int) -> AsyncIterator[int]:
        """Delete them, at most ``size`` in one transaction; tells of each how many it deleted.

        Raises:
            StoreError: a right is missing.
            Fault: the database is away, or a batch can't be deleted. The batches before it are
                deleted.
        """
        # By id, so that each pass reads the table once: no index has the age, and dead rows are not
        # read again.
        query = sa.select(flow_run.c.id).where(self._doomed).order_by(flow_run.c.id).limit(size)
        while True:
            deleted, rest = 0, query
            while ids := (await self._execute(rest)).scalars().all():
                if self._prefect:
                    await self._clear(ids)
                count = await self._delete(sa.delete(flow_run).where(flow_run.c.id.in_(ids), self._doomed))
                deleted += count
                rest = query.where(flow_run.c.id > ids[-1])
                yield count
            # A subflow has no parent any more once that is deleted, and may stand before it.
            if not (self._prefect and deleted):
                return

    async def _clear(self, ids: Sequence[UUID]) -> None:
        """Delete logs and artifacts of runs, before the runs: what is interrupted then leaves none
        behind. The newest artifact of a key stays, since Prefect shows it by itself.
        """
        shown = sa.exists().where(
            _artifact_collection.c.key == artifact.c.key, _artifact_collection.c.latest_id == artifact.c.id
        )
        for table, also in ((_log, sa.true()), (artifact, ~shown)):
            some = sa.select(table.c.id).where(table.c.flow_run_id.in_(ids), also).limit(ROWS_MAX)
            while await self._delete(sa.delete(table).where(table.c.id.in_(some))) == ROWS_MAX:
                pass

    async def _delete(self, statement: sa.Delete) -> int:
        return (await self._execute(statement)).rowcount

    async def _execute(self, *statements: sa.Executable) -> sa.CursorResult[*tuple[Any, ...]]:
        """What the last of these statements has found, which are one transaction. What a lock or a
        lost connection kept from being done is tried again.
        """
        *first, last = statements
        backoff = Backoff()
        while True:
            try:
                async with self._database.connect(transaction=bool(first)) as connection:
                    for statement in first:
                        await connection.execute(statement)
                    return await connection.execute(last)
            except Exception as error:
                if isinstance(driver_error(error), asyncpg.InsufficientPrivilegeError):
                    raise StoreError(
                        f"The database: {first_line(driver_error(error))}. Run it as the owner of the "
                        "tables, or grant what deploy/docs/rights-and-security.md says."
                    ) from error
                said = blame(error)
                if said is Blame.unforeseen:
                    raise
                if said not in (Blame.moment, Blame.connection) or backoff.tries == TRIES_MAX:
                    raise fault(error) from error
            await backoff.sleep()


@asynccontextmanager
async def open_pruning(
    url: str, kind: migrations.Kind, *, before: datetime, states: Collection[str]
) -> AsyncIterator[Pruning]:
    """Connect to a database whose runs are to be deleted; makes no file and no tables.

    Raises:
        StoreError: URL, login, name, schema or kind is wrong.
        Fault: the database can't be reached now.
    """
    parsed = parse_url(url)
    where = redact(parsed.render_as_string(hide_password=False))
    schema = await migrations.inspect(parsed, kind)
    if schema.problems:
        raise StoreError(f"{where}: not usable: {'; '.join(schema.problems)}")
    if schema.revision is None:
        raise StoreError(f"{where}: there are no tables yet, so no runs either.")
    if schema.prefect and kind == "standalone":
        raise StoreError(
            f"{where} is a Prefect server's database. WORKER_DATABASE_KIND demands one of the worker's own."
        )
    if not (parsed.get_backend_name() == "sqlite" or "command_timeout" in parsed.query):
        parsed = parsed.update_query_dict({"command_timeout": str(STATEMENT_TIMEOUT)})
    database = await open_database(parsed)
    try:
        yield Pruning(database, prefect=schema.prefect, before=before, states=states)
    finally:
        await database.close()
