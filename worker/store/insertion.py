"""Inserts runs, and finds among them those that a database does not take; knows no keys."""

from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.contract.encoding import dumps
from worker.contract.errors import Fault, Refusal
from worker.contract.flow_run import FlowRun
from worker.creation import NewRun
from worker.store.engine import Database, driver
from worker.store.errors import Blame, blame, fault, refusal
from worker.store.prefect import follow, task_run, task_run_state
from worker.store.statements import Statements, bound, given

log = structlog.get_logger(__name__)

# How long statements stay small after one was too large; seconds. A guess.
SMALL_SECONDS = 60.0
# A database that answers, and takes none of so many statements in a row, is left alone for a while.
FAULTS_MAX = 10

Stored = dict[UUID, FlowRun | Refusal]


class Insertion:
    """Inserts runs with their states. Its methods may be called from several tasks."""

    def __init__(self, database: Database, statements: Statements, *, prefect: bool) -> None:
        self._database = database
        self._statements = statements
        self._prefect = prefect
        self._limit = 0
        self._limited_until = 0.0

    async def insert(self, runs: Sequence[NewRun]) -> Stored:
        """Insert runs; those that conflict with a run that exists are left out.

        Returns:
            By id, the runs that were inserted, and a refusal for each that the database can't
            store. The others are stored whatever becomes of these.

        Raises:
            Fault: the database is away or busy. Of each statement nothing was stored, or all of it.
        """
        stored: Stored = {}
        faults: list[Fault] = []
        while runs:
            limit = self._limit if monotonic() < self._limited_until else len(runs)
            now, runs = runs[:limit], runs[limit:]
            try:
                stored |= await self._insert_or_halve(now)
            except Fault as raised:
                if not await self._answers():
                    raise
                # What is the matter may be one run of these. It is not to hold up the others for
                # ever: as they are given again, fewer of them share its statement each time.
                self._narrow(len(now))
                faults.append(raised)
                if len(now) > 1 or len(faults) == FAULTS_MAX:
                    break
        if faults:
            raise faults[0]
        return stored

    async def _insert_or_halve(self, runs: Sequence[NewRun], *, again: bool = False) -> Stored:
        """Insert runs by one statement, or by halves where that says that one of them is bad."""
        try:
            ids = await self._insert_together(runs)
        except Exception as error:
            said = blame(error)
            if said in (Blame.moment, Blame.connection) or (said is Blame.batch and len(runs) == 1):
                raise fault(error) from error
            if said is Blame.unforeseen and not await self._answers():
                raise fault(error) from error
            if said is Blame.batch:
                self._narrow(len(runs))
            if len(runs) > 1:
                half = len(runs) // 2
                return {
                    **await self._insert_or_halve(runs[:half]),
                    **await self._insert_or_halve(runs[half:]),
                }
            if said is Blame.unforeseen and not again:
                return await self._insert_or_halve(runs, again=True)
            if said is Blame.unforeseen:
                log.exception("run_not_stored", flow_run_id=str(runs[0].run.id))
            return {runs[0].run.id: refusal(error)}
        return {new.run.id: new.run for new in runs if new.run.id in ids}

    async def _insert_together(self, runs: Sequence[NewRun]) -> set[UUID]:
        """Insert runs, all or none; returns the ids of those that are new."""
        subflows = [new for new in runs if self._prefect and new.run.parent_task_run_id is not None]
        # On PostgreSQL one statement is all there is to it, and commits by itself.
        several = bool(subflows or self._statements.create_states)
        async with self._database.connect(transaction=several) as connection:
            ids = await self._execute(connection, runs)
            if subflows:
                await _let_parents_follow(
                    connection, self._statements, [new for new in subflows if new.run.id in ids]
                )
        return ids

    async def _execute(self, connection: AsyncConnection, runs: Sequence[NewRun]) -> set[UUID]:
        rows = self._statements.new_rows(new.run for new in runs)
        if not self._statements.create_states:
            return {row[0] for row in await driver(connection).fetch(self._statements.create, rows)}
        sqlite = driver(connection)
        ids = [row[0] for row in await sqlite.execute_fetchall(self._statements.create, (rows,))]
        if ids:
            await sqlite.execute_fetchall(self._statements.create_states, (rows, dumps(ids).decode()))
        return {UUID(each) for each in ids}

    def _narrow(self, size: int) -> None:
        self._limit, self._limited_until = max(1, size // 2), monotonic() + SMALL_SECONDS

    async def _answers(self) -> bool:
        try:
            await self.ping()
        except Fault:
            return False
        return True

    async def ping(self) -> None:
        """Raise Fault unless the database answers."""
        try:
            async with self._database.connect() as connection:
                await connection.exec_driver_sql("SELECT 1 FROM flow_run LIMIT 1")
        except Exception as error:
            raise fault(error) from error

    async def try_writing(self, new: NewRun) -> None:
        """Raise Fault unless the database writes; what is wrong with the run is passed over."""
        try:
            async with self._database.connect(transaction=True) as connection:
                if self._statements.create_states:
                    # A run that is taken back would not reach the file. Its version number does.
                    version = (await connection.exec_driver_sql("PRAGMA user_version")).scalar()
                    await connection.exec_driver_sql(f"PRAGMA user_version = {version:d}")
                else:
                    await self._execute(connection, [new])
                    await connection.rollback()
        except Exception as error:
            if blame(error) is not Blame.row:
                raise fault(error) from error


async def _let_parents_follow(
    connection: AsyncConnection, statements: Statements, subflows: Sequence[NewRun]
) -> None:
    """Let the parent task runs of new subflows follow, in the transaction that made these."""
    now = datetime.now(UTC)
    ids = {new.run.parent_task_run_id for new in subflows}
    # One order in all workers, so that no two of them wait for each other's rows.
    query = statements.lookup(task_run.c.id).order_by(task_run.c.id).with_for_update(of=task_run)
    rows = await connection.execute(query, given([each] for each in ids))
    parents: dict[UUID, dict[str, Any]] = {row.id: dict(row._mapping) for row in rows}
    for new in subflows:
        assert new.run.parent_task_run_id is not None
        parent = parents[new.run.parent_task_run_id]
        state, changes = follow(parent, new, now)
        await connection.execute(sa.insert(task_run_state).values(bound(task_run_state, state)))
        its = sa.update(task_run).where(task_run.c.id == parent["id"])
        await connection.execute(its.values(bound(task_run, changes)))
        parent |= changes
