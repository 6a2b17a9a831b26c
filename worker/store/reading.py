"""Reads rows by their keys, for new runs and for events: many at a time, and in turns if they are
large. Also checks that the database answers.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa
from asyncpg import InsufficientPrivilegeError, UndefinedTableError

from worker.contract.errors import Fault, Unprocessable
from worker.contract.flow_run import FlowRunState
from worker.contract.related import References, Related, RelatedRows
from worker.store.engine import Database, driver
from worker.store.errors import Blame, blame, driver_error, fault, first_line, is_fault
from worker.store.outcome import Undecided
from worker.store.rights import mended
from worker.store.statements import Statements, given
from worker.store.tables import deployment, flow, flow_run_state, task_run, work_pool, work_queue
from worker.tasks.budget import Budget
from worker.tasks.turns import Turns

Row = sa.Row[*tuple[Any, ...]]

Item = TypeVar("Item")

NO_ROOM = "the rows that it refers to have no room beside those of others"
# Its commit waits for a synchronous standby, if the server demands one.
WAIT_FOR_STANDBY = (
    "SELECT pg_logical_emit_message(true, 'flow-run-worker', '')"
    " WHERE current_setting('synchronous_standby_names') <> ''"
)
# Only the columns that events show.
_SAID = {field.name for field in fields(Related)}


class Unreadable(Fault):
    """A table, or the right to read it, is missing. It is a fault if all requests need the table.
    Otherwise the requests that need it are refused.

    Attributes:
        refusal: the answer to those requests.
    """

    def __init__(self, error: BaseException) -> None:
        reason = first_line(driver_error(error))
        super().__init__(reason)
        self.refusal = Unprocessable(
            f"The worker may not read the rows that this request refers to: {reason}. {mended(reason)}"
        )


def in_turns(
    items: Iterable[tuple[Item, int]], max_size: int, turns: Turns
) -> Iterator[tuple[Item, Undecided | None]]:
    """Yield each item with None if there is room for it now, or as undecided until its turn.

    Args:
        items: with their sizes in bytes. The first one always has room.
        max_size: bytes that are read together, now and in each turn.
    """
    budget, turn = Budget(max_size), None
    for item, size in items:
        if not budget.take(size):
            budget, turn = Budget(max_size), Undecided(NO_ROOM, turns.wait())
            budget.take(size)
        yield item, turn


class Reader:
    """Reads from the database. Its methods may be called from several tasks. All raise Fault if the
    database is away or busy.
    """

    def __init__(self, database: Database, *, prefect: bool, lacks: Collection[str] = ()) -> None:
        self.database = database
        self.statements = Statements(database.engine.dialect, prefect=prefect, lacks=lacks)

    async def query(self, query: sa.Select[Any], wanted: Sequence[Sequence[Any]]) -> Sequence[Row]:
        """The rows that a query finds for these values of its keys."""
        if not wanted:
            return []
        try:
            async with self.database.connect() as connection:
                return list(await connection.execute(query, given(wanted)))
        except Exception as error:
            if isinstance(driver_error(error), (InsufficientPrivilegeError, UndefinedTableError)):
                raise Unreadable(error) from error
            # Reading touches no row of a request, so locks and slowness are the database's fault.
            if is_fault(error) or blame(error) not in (Blame.row, Blame.unforeseen):
                raise fault(error) from error
            raise  # the line finds the request that is to blame

    async def find(self, by_key: Sequence[sa.Select[Any]], keys: Collection[tuple[Any, ...]]) -> list[Row]:
        """The rows with these keys, some of which are an id, and others two values.

        Args:
            by_key: the query for ids, and that for two values.
        """
        one, two = ([key for key in keys if len(key) == length] for length in (1, 2))
        return [*await self.query(by_key[0], one), *await self.query(by_key[1], two)]

    async def rows(
        self, key: sa.Column[Any], values: Iterable[Any], *columns: sa.ColumnElement[Any]
    ) -> Sequence[Row]:
        """The rows in which ``key`` has one of these values, with ``key`` and the other columns."""
        return await self.query(self.statements.lookup(key, *columns), [(value,) for value in values])

    async def has_deployment(self, name: str) -> bool:
        """Whether there is a deployment of this name, see :meth:`deployment_id`."""
        return await self.deployment_id(name) is not None

    async def deployment_id(self, name: str) -> UUID | None:
        """The id of the deployment with this name, ``FLOW NAME/DEPLOYMENT NAME``. None if there is
        none. Works in a Prefect server's database only.
        """
        rows = await self.query(self.statements.deployment_sizes[1], [name.split("/")])
        return next((row.id for row in rows), None)

    async def ping(self) -> None:
        """Return if the database answers."""
        await self._expect("SELECT 1 FROM flow_run LIMIT 1")

    async def wait_for_standby(self) -> None:
        """Return once a synchronous standby has all rows that are readable now.

        A commit stops waiting for its standby if it is cancelled or the server restarts. Then its
        rows are readable, but the standby may lack them.
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
        """The rows that runs refer to, and the work pools of their work queues. Works in a Prefect
        server's database only.
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
        except Unreadable:  # an event can do without it, as if the row were deleted
            return {}
        present = ({name: each for name, each in row._mapping.items() if each is not None} for row in found)
        return {each["id"]: Related(**each) for each in present}

    async def first_states(self, run_ids: Iterable[UUID]) -> dict[UUID, FlowRunState]:
        """The first state of each run, by the runs' ids."""
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
