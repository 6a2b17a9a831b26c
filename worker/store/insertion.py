"""Inserts runs, and finds those that the database does not take. Knows no keys."""

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.contract.decode import FlowRunRequest
from worker.contract.encoding import dumps_text
from worker.contract.errors import Fault, IntegrityConflict
from worker.contract.flow_run import FlowRun
from worker.contract.request import CreateFlowRun
from worker.runs.creation import NewRun, new_run
from worker.store.engine import driver
from worker.store.errors import Blame, Swallowed, blame, fault, is_fault, is_gone, is_of_row, refusal, tries
from worker.store.guard import Guard
from worker.store.outcome import Created, Outcome, Undecided
from worker.store.prefect import follow
from worker.store.reading import Reader
from worker.store.statements import bound, given
from worker.store.tables import flow_run, task_run, task_run_state
from worker.tasks.isolate import Failed, isolate

# Seconds for which statements stay small after one was too large. A guess.
SMALL_SECONDS = 60.0
# Bytes that a statement may have beside its requests' bodies, such as a deployment's parameters in
# each of its runs. The bodies are bounded already, at about the same size.
ADDED_MAX = 8 * 1024 * 1024
# After this many failed statements in a row, the database gets a pause if it does not take a row of
# our own either. A guess.
FAILURES_MAX = 10
# A row that was looked up may be deleted before the run is inserted: look it up once more.
TRIES_GONE = 2


class Insertion:
    """Inserts runs with their states. Its methods may be called from several tasks."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._guard = Guard(reader.database)
        self._limit = 0
        self._limited_until = 0.0
        self._stored: FlowRun | None = None

    async def insert(self, runs: Sequence[NewRun]) -> dict[UUID, Outcome]:
        """Insert runs. Runs that conflict with an existing row are left out.

        If a statement fails, its halves are tried in transactions of their own, down to the run
        that is to blame. A run is undecided while either it or the database may be to blame for an
        error. The run is to blame once the database writes others.

        Returns:
            By id: inserted runs, refusals of runs that the database can't store, undecided runs.

        Raises:
            Fault: the database is away or busy, or lacks the unique index. Nothing was stored.
        """
        await self._guard.look()
        attempts = _Attempts(self)
        outcomes: dict[UUID, Outcome] = {}
        failed: dict[UUID, Exception] = {}
        for piece in self._pieces(runs):
            for new, result in zip(piece, await isolate(piece, attempts, stop=Fault), strict=True):
                if isinstance(result, Failed):
                    failed[new.run.id] = result.error
                elif result is not None:
                    outcomes[new.run.id] = result
                    self._stored = result.run
        wrote = attempts.wrote or bool(outcomes)
        for run_id, error in failed.items():
            outcomes[run_id] = undecided(error, wrote=wrote)
        return outcomes

    def _pieces(self, runs: Sequence[NewRun]) -> Iterator[Sequence[NewRun]]:
        """Cut the runs into the pieces that one statement may have now."""
        size = self._limit if monotonic() < self._limited_until else max(1, len(runs))
        if added := max((new.added for new in runs), default=0):
            size = min(size, max(1, ADDED_MAX // added))
        return (runs[start : start + size] for start in range(0, len(runs), size))

    def narrow(self, size: int) -> None:
        """Halve this size, and keep statements below it for :data:`SMALL_SECONDS`."""
        limit = max(1, size // 2)
        self._limit = min(limit, self._limit) if monotonic() < self._limited_until else limit
        self._limited_until = monotonic() + SMALL_SECONDS

    async def insert_together(self, runs: Sequence[NewRun]) -> set[UUID]:
        """Insert all runs or none. Returns the ids of the new ones.

        Raises:
            Swallowed: the database accepted a row, but does not have it.
        """
        subflows = [
            new for new in runs if self._reader.statements.prefect and new.run.parent_task_run_id is not None
        ]
        # On PostgreSQL a single statement is enough, and needs no transaction.
        several = self._reader.statements.sqlite or self._guard.has_triggers or bool(subflows)
        async with self._reader.database.connect(transaction=several) as connection:
            ids = await self._execute(connection, runs)
            if subflows:
                await self._let_parents_follow(connection, [new for new in subflows if new.run.id in ids])
            if self._guard.has_triggers:
                await self._see(connection, ids)
        return ids

    async def _see(self, connection: AsyncConnection, ids: Collection[UUID]) -> None:
        found = await connection.execute(self._reader.statements.complete, given((each,) for each in ids))
        if len(found.all()) < len(ids):
            raise Swallowed

    async def explain(self, new: NewRun) -> Outcome:
        """Find out why the database neither inserts a run nor has one with its key. Rolls back."""
        try:
            async with self._reader.database.connect(transaction=True) as connection:
                ids = await self._execute(connection, [new], self._reader.statements.create_plainly)
                if new.run.id not in ids:
                    raise Swallowed
                await self._see(connection, ids)
                await connection.rollback()
        except Exception as error:
            return undecided(error, wrote=True)
        # The database takes the run now: the obstacle is gone.
        vanished = "The run, or another one with its key, existed and was deleted."
        return Undecided(vanished, refusal=IntegrityConflict(vanished), blamed=True)

    async def _execute(
        self, connection: AsyncConnection, runs: Sequence[NewRun], create: str | None = None
    ) -> set[UUID]:
        statements, server = self._reader.statements, driver(connection)
        create = create or statements.create
        # The runs may have waited for the database. States are published in the order of this
        # column.
        now = datetime.now(UTC)
        for new in runs:
            if new.run.state is not None:
                new.run.state.updated = now
        rows = statements.new_rows(new.run for new in runs)
        if not statements.sqlite:
            return {row[0] for row in await server.fetch(create, *rows)}
        ids = [row[0] for row in await server.execute_fetchall(create, rows)]
        if ids:
            await server.execute_fetchall(statements.create_states, (*rows, dumps_text(ids)))
        return {UUID(each) for each in ids}

    async def _let_parents_follow(self, connection: AsyncConnection, subflows: Sequence[NewRun]) -> None:
        """Update the parent task runs of new subflows, in the transaction of the subflows."""
        now = datetime.now(UTC)
        ids = {new.run.parent_task_run_id for new in subflows}
        # All workers lock rows in the same order, so that no two wait for each other.
        query = self._reader.statements.lookup(task_run.c.id, *task_run.columns).order_by(task_run.c.id)
        rows = await connection.execute(query.with_for_update(of=task_run), given((each,) for each in ids))
        parents: dict[UUID, dict[str, Any]] = {row.id: dict(row._mapping) for row in rows}
        for new in subflows:
            assert new.run.parent_task_run_id is not None
            parent = parents[new.run.parent_task_run_id]
            state, changes = follow(parent, new, now)
            await connection.execute(sa.insert(task_run_state).values(bound(task_run_state, state)))
            its = sa.update(task_run).where(task_run.c.id == parent["id"])
            await connection.execute(its.values(bound(task_run, changes)))
            parent |= changes

    async def writes(self) -> bool:
        """Try to write an ordinary row of our own, and roll it back.

        Returns:
            True if the database took it; false if it refused, perhaps over the row's contents.

        Raises:
            Fault: it is away or busy, writes nothing, or lacks the unique index.
        """
        await self._guard.look()
        try:
            async with self._reader.database.connect(transaction=True) as connection:
                if self._reader.statements.sqlite:
                    # A rolled back run does not reach the file. This version number does.
                    version = (await connection.exec_driver_sql("PRAGMA user_version")).scalar()
                    await connection.exec_driver_sql(f"PRAGMA user_version = {version:d}")
                    await connection.exec_driver_sql("SAVEPOINT trial")
                try:
                    await self._execute(connection, [await self._trial(connection)])
                except Exception as error:
                    if is_fault(error) or blame(error) is not Blame.row:
                        raise
                if self._reader.statements.sqlite:
                    await connection.exec_driver_sql("ROLLBACK TO trial")
                else:
                    await connection.rollback()
        except Exception as error:
            if is_fault(error) or not is_of_row(error):
                raise fault(error) from error
            return False
        await self._reader.wait_for_standby()
        return True

    async def _trial(self, connection: AsyncConnection) -> NewRun:
        """A trial run, with the flow of an existing run if there is one."""
        flow_id = self._stored.flow_id if self._stored else None
        if flow_id is None:
            flow_id = (await connection.execute(sa.select(flow_run.c.flow_id).limit(1))).scalar()
        body = CreateFlowRun(flow_id=flow_id or uuid4(), name=f"trial-{uuid4()}")
        return new_run(FlowRunRequest(body), datetime.now(UTC))


class _Attempts:
    """Inserts the runs of one call of :meth:`Insertion.insert`.

    Attributes:
        wrote: the database has taken a row of our own.
    """

    def __init__(self, insertion: Insertion) -> None:
        self.wrote = False
        self._insertion = insertion
        self._failed = 0
        self._away: Fault | None = None

    async def __call__(self, runs: Sequence[NewRun]) -> Sequence[Created | None]:
        """Insert all runs or none. Returns None for each that conflicts with an existing row.

        Raises:
            Fault: the database is away or busy.
            Exception: one of the runs may be to blame.
        """
        if self._away is not None:
            raise self._away
        try:
            ids = await self._insertion.insert_together(runs)
        except Exception as error:
            if blame(error) is Blame.batch:
                self._insertion.narrow(len(runs))
            try:
                await self._look_into(error)
            except Fault as away:
                self._away = away
                raise
            raise
        return [Created(new.run) if new.run.id in ids else None for new in runs]

    async def _look_into(self, error: Exception) -> None:
        """Raise Fault if the database is to blame for an error."""
        if is_fault(error):
            raise fault(error) from error
        if blame(error) is Blame.row or self.wrote:
            return
        self._failed += 1
        self.wrote = await self._insertion.writes()
        if not self.wrote and self._failed >= FAILURES_MAX:
            raise fault(error) from error


def undecided(error: Exception, *, wrote: bool) -> Outcome:
    """The outcome of a run that fails even alone.

    Args:
        wrote: the database has written another run.
    """
    if is_fault(error):
        away = fault(error)
        return Undecided(str(away), ended=away.ended)
    reason = str(fault(error))
    if is_gone(error):
        return Undecided(reason, refusal=refusal(error), blamed=True, tries=TRIES_GONE)
    if blame(error) is Blame.row:
        return refusal(error)
    return Undecided(reason, refusal=refusal(error), blamed=wrote, tries=tries(error))
