"""Deletes old runs and their logs and artifacts, in a database of either kind.

Each batch is a transaction of its own. So others wait briefly, and an interrupted pruning can go on
where it stopped.
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

# Seconds. Counting the runs of a large table takes longer than any statement of a worker.
STATEMENT_TIMEOUT = 3600
# Most logs or artifacts to delete in one transaction. A run may have any number of them.
ROWS_MAX = 5_000
# Tries for a batch that meets a lock or a lost connection; together they take some seconds.
TRIES_MAX = 6

# Tables of Prefect whose rows name a run without a foreign key, and so would stay behind. (The
# worker doesn't check these two at its start.)
_metadata = sa.MetaData()
_log = part_of("log", {Uuid: "id flow_run_id"}, _metadata)
_artifact_collection = part_of("artifact_collection", {Text: "key", Uuid: "latest_id"}, _metadata)


@dataclass(frozen=True, slots=True)
class OldRuns:
    """The number of old runs in one state. They are deleted if it is ``chosen``."""

    state: str
    count: int
    chosen: bool


class Pruning:
    """Deletes the runs in the given states that are older than a point in time.

    The age of a run in a final state counts from its end, as in Prefect's ``vacuum_old_flow_runs``.
    The age of any other run counts from its state, or from its scheduled time if that is later. In
    a Prefect server's database a subflow stays until its parent's task run is gone, as there.

    Use :func:`open_pruning`.

    Args:
        prefect: the database is a Prefect server's.
        before: delete runs older than this; with a time zone.
        states: types of states.
    """

    def __init__(
        self, database: Database, *, prefect: bool, before: datetime, states: Collection[str]
    ) -> None:
        self._database = database
        self._prefect = prefect
        # As text: a newer Prefect may have more types, and asyncpg would look up the enum's values.
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
        """Count the old runs by state, including the states that are not deleted."""
        query = sa.select(self._state, sa.func.count()).where(self._old)
        # The engine turns sequential scans off for the worker. This query reads the whole table.
        planning = () if self._database.sqlite else (sa.text("SET LOCAL enable_seqscan = on"),)
        found = await self._execute(*planning, query.group_by(self._state).order_by(self._state))
        return [OldRuns(state, count, state in self._states) for state, count in found]

    async def batches(self, size: int) -> AsyncIterator[int]:
        """Delete the runs, at most ``size`` in one transaction. Yields how many each one deleted.

        Raises:
            StoreError: a right is missing.
            Fault: the database is away, or a batch can't be deleted. Earlier batches stay deleted.
        """
        # By id, so that each pass reads the table once (no index has the age), and no dead row
        # twice.
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
            # The next pass deletes subflows whose parents this pass deleted.
            if not (self._prefect and deleted):
                return

    async def _clear(self, ids: Sequence[UUID]) -> None:
        """Delete logs and artifacts of runs. They go before the runs, so that an interruption
        leaves none behind. The newest artifact of a key stays: Prefect shows it apart from its run.
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
        """Run the statements in one transaction, and return the result of the last one. Try again
        after a lock or a lost connection.
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
    """Connect to the database to prune. Makes no file and no tables.

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
