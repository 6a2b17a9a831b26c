"""Inserts runs, and finds among them those that a database does not take; knows no keys."""

from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.contract.encoding import dumps_text
from worker.contract.errors import Fault
from worker.creation import NewRun
from worker.store.engine import driver
from worker.store.errors import Blame, blame, fault, refusal
from worker.store.outcome import Created, Outcome
from worker.store.prefect import follow
from worker.store.reading import Reader
from worker.store.statements import bound, given
from worker.store.tables import task_run, task_run_state

log = structlog.get_logger(__name__)

# How long statements stay small after one was too large; seconds. A guess.
SMALL_SECONDS = 60.0
# A batch is bounded by the bytes of its requests. So much may come from elsewhere into a statement,
# such as a deployment's parameters into each of its runs; bytes, of the order of a batch's own.
ADDED_MAX = 8 * 1024 * 1024
# A database that answers, and takes none of so many statements in a row, is left alone for a while.
FAULTS_MAX = 10


class Insertion:
    """Inserts runs with their states. Its methods may be called from several tasks."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._limit = 0
        self._limited_until = 0.0

    async def insert(self, runs: Sequence[NewRun]) -> dict[UUID, Outcome]:
        """Insert runs; those that conflict with a run that exists are left out.

        Where a statement fails and the database still answers, one of its runs may be the cause:
        its halves are tried, each in a transaction of its own, down to that run. Where what failed
        may pass by itself, this goes on as the same runs are given again.

        Returns:
            By id, the runs that were inserted, and a refusal for each that the database can't
            store.

        Raises:
            Fault: the database is away or busy. Of each statement nothing was stored, or all of it.
        """
        stored: dict[UUID, Outcome] = {}
        faults: list[Fault] = []
        again: set[UUID] = set()
        pieces = deque(self._pieces(runs))
        while pieces:
            piece = pieces.popleft()
            run_id, alone = piece[0].run.id, len(piece) == 1
            try:
                ids = await self._insert_together(piece)
            except Fault:
                raise
            except Exception as error:
                said = blame(error)
                if said is not Blame.row:
                    try:
                        await self._reader.ping()
                    except Fault:
                        raise fault(error) from error
                if said in (Blame.moment, Blame.connection, Blame.batch):
                    self._narrow(len(piece))
                if said in (Blame.moment, Blame.connection) or (said is Blame.batch and alone):
                    faults.append(fault(error))
                    if not alone or len(faults) == FAULTS_MAX:
                        break
                elif not alone:
                    half = len(piece) // 2
                    pieces.extendleft((piece[half:], piece[:half]))
                elif said is Blame.unforeseen and run_id not in again:
                    again.add(run_id)
                    pieces.appendleft(piece)
                else:
                    log.warning("run_not_stored", flow_run_id=str(run_id), error=repr(error))
                    stored[run_id] = refusal(error)
            else:
                stored |= {new.run.id: Created(new.run) for new in piece if new.run.id in ids}
        if faults:
            raise faults[0]
        return stored

    def _pieces(self, runs: Sequence[NewRun]) -> Iterator[Sequence[NewRun]]:
        """As many runs at a time as one statement may have now."""
        size = self._limit if monotonic() < self._limited_until else max(1, len(runs))
        if added := max((new.added for new in runs), default=0):
            size = min(size, max(1, ADDED_MAX // added))
        return (runs[start : start + size] for start in range(0, len(runs), size))

    def _narrow(self, size: int) -> None:
        """Let statements be smaller than this for a while."""
        limit = max(1, size // 2)
        self._limit = min(limit, self._limit) if monotonic() < self._limited_until else limit
        self._limited_until = monotonic() + SMALL_SECONDS

    async def _insert_together(self, runs: Sequence[NewRun]) -> set[UUID]:
        """Insert runs, all or none; returns the ids of those that are new."""
        subflows = [
            new for new in runs if self._reader.statements.prefect and new.run.parent_task_run_id is not None
        ]
        # On PostgreSQL one statement is all there is to it, and commits by itself.
        several = self._reader.statements.sqlite or bool(subflows)
        async with self._reader.database.connect(transaction=several) as connection:
            ids = await self._execute(connection, runs)
            if subflows:
                await self._let_parents_follow(connection, [new for new in subflows if new.run.id in ids])
        return ids

    async def _execute(self, connection: AsyncConnection, runs: Sequence[NewRun]) -> set[UUID]:
        statements, server = self._reader.statements, driver(connection)
        rows = statements.new_rows(new.run for new in runs)
        if not statements.sqlite:
            return {row[0] for row in await server.fetch(statements.create, *rows)}
        ids = [row[0] for row in await server.execute_fetchall(statements.create, rows)]
        if ids:
            await server.execute_fetchall(statements.create_states, (*rows, dumps_text(ids)))
        return {UUID(each) for each in ids}

    async def _let_parents_follow(self, connection: AsyncConnection, subflows: Sequence[NewRun]) -> None:
        """Let the parent task runs of new subflows follow, in the transaction that made these."""
        now = datetime.now(UTC)
        ids = {new.run.parent_task_run_id for new in subflows}
        # One order in all workers, so that no two of them wait for each other's rows.
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

    async def try_writing(self, new: NewRun) -> None:
        """Raise Fault unless the database writes; what is wrong with the run is passed over."""
        try:
            async with self._reader.database.connect(transaction=True) as connection:
                if self._reader.statements.sqlite:
                    # A run that is taken back would not reach the file. Its version number does.
                    version = (await connection.exec_driver_sql("PRAGMA user_version")).scalar()
                    await connection.exec_driver_sql(f"PRAGMA user_version = {version:d}")
                else:
                    await self._execute(connection, [new])
                    await connection.rollback()
        except Exception as error:
            if blame(error) is not Blame.row:
                raise fault(error) from error
        await self._reader.wait_for_standby()
