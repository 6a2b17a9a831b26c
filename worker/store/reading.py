"""Asks a database whether it answers, and for rows by what is known of them, many at a time: what
runs refer to, and what events say.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from asyncpg import InsufficientPrivilegeError, UndefinedTableError

from worker.contract.errors import Fault, Unprocessable
from worker.contract.flow_run import FlowRunState
from worker.contract.related import References, Related, RelatedRows
from worker.store.engine import Database, driver
from worker.store.errors import Blame, blame, driver_error, fault, first_line, is_fault
from worker.store.rights import mended
from worker.store.statements import Statements, given
from worker.store.tables import deployment, flow, flow_run_state, task_run, work_pool, work_queue

Row = sa.Row[*tuple[Any, ...]]

# Writes something whose commit waits for a synchronous standby, where there has to be one.
WAIT_FOR_STANDBY = (
    "SELECT pg_logical_emit_message(true, 'flow-run-worker', '')"
    " WHERE current_setting('synchronous_standby_names') <> ''"
)
# No more than an event says.
_SAID = {field.name for field in fields(Related)}


class Unreadable(Fault):
    """A right on a table is missing, or the table. Nothing is served where all requests need it; or
    else it refuses those that do.

    Attributes:
        refusal: what these are answered.
    """

    def __init__(self, error: BaseException) -> None:
        reason = first_line(driver_error(error))
        super().__init__(reason)
        self.refusal = Unprocessable(
            f"The worker may not look up what this request refers to: {reason}. {mended(reason)}"
        )


class Reader:
    """Asks the database. Its methods may be called from several tasks; all raise Fault if it is
    away or busy.
    """

    def __init__(self, database: Database, *, prefect: bool, lacks: Collection[str] = ()) -> None:
        self.database = database
        self.statements = Statements(database.engine.dialect, prefect=prefect, lacks=lacks)

    async def query(self, query: sa.Select[Any], wanted: Sequence[Sequence[Any]]) -> Sequence[Row]:
        """The rows that a query finds by these values."""
        if not wanted:
            return []
        try:
            async with self.database.connect() as connection:
                return list(await connection.execute(query, given(wanted)))
        except Exception as error:
            if isinstance(driver_error(error), (InsufficientPrivilegeError, UndefinedTableError)):
                raise Unreadable(error) from error
            # What is read has no row of a request's own: locks and time are the database's.
            if is_fault(error) or blame(error) not in (Blame.row, Blame.unforeseen):
                raise fault(error) from error
            raise  # the line finds whose it is

    async def rows(
        self, key: sa.Column[Any], values: Iterable[Any], *columns: sa.ColumnElement[Any]
    ) -> Sequence[Row]:
        """The rows in which ``key`` has one of these values: this column, and the others."""
        return await self.query(self.statements.lookup(key, *columns), [(value,) for value in values])

    async def ping(self) -> None:
        """Return if the database answers."""
        await self._expect("SELECT 1 FROM flow_run LIMIT 1")

    async def wait_for_standby(self) -> None:
        """Return once a synchronous standby has all that could be read by now.

        A commit that waits for a standby waits no longer when it is cancelled, or the server was
        restarted: it can be read then, and no standby need have it.
        """
        if not self.database.sqlite:
            await self._expect(WAIT_FOR_STANDBY)

    async def _expect(self, statement: str) -> None:
        try:
            async with self.database.connect() as connection:
                server = driver(connection)
                await (server.execute_fetchall if self.database.sqlite else server.execute)(statement)
        except Exception as error:
            raise fault(error) from error

    async def related(self, wanted: References) -> RelatedRows:
        """The rows that some runs refer to, and the work pools of the work queues; of a Prefect
        server's database.
        """
        queues = await self._related(work_queue, wanted.work_queues)
        pools = {queue.work_pool_id for queue in queues.values() if queue.work_pool_id}
        return RelatedRows(
            flows=await self._related(flow, wanted.flows),
            deployments=await self._related(deployment, wanted.deployments),
            work_queues=queues,
            work_pools=await self._related(work_pool, pools),
            task_runs=await self._related(task_run, wanted.task_runs),
        )

    async def _related(self, table: sa.Table, ids: Iterable[UUID]) -> dict[UUID, Related]:
        said = [column for column in table.columns if column.name in _SAID]
        try:
            found = await self.rows(table.c.id, ids, *said)
        except Unreadable:  # as where the row is gone
            return {}
        present = ({name: each for name, each in row._mapping.items() if each is not None} for row in found)
        return {each["id"]: Related(**each) for each in present}

    async def first_states(self, run_ids: Iterable[UUID]) -> dict[UUID, FlowRunState]:
        """The states that some runs began with, by the runs' ids."""
        earlier = flow_run_state.alias("earlier")
        began = (
            sa.select(sa.func.min(earlier.c.timestamp))
            .where(earlier.c.flow_run_id == flow_run_state.c.flow_run_id)
            .scalar_subquery()
        )
        lookup = self.statements.lookup(flow_run_state.c.flow_run_id, *self.statements.state_columns)
        select = lookup.where(flow_run_state.c.timestamp == began)
        rows = await self.query(select, [(each,) for each in run_ids])
        return {row.flow_run_id: FlowRunState(**row._mapping) for row in rows}
