"""The store's side to PostgreSQL: one round trip and one transaction for a batch; knows rows, not
requests.

asyncpg is used below SQLAlchemy here, since parameters by the thousand cost more to compile and
bind than PostgreSQL takes to store them; see :mod:`worker.store.insertion`.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import URL

from worker.contract.errors import Fault, Refusal
from worker.contract.flow_run import FlowRun
from worker.creation import NewRun
from worker.store.insertion import INSERT, names, parameter
from worker.store.outcome import refused_by_database
from worker.store.prefect import follow, task_run, task_run_state
from worker.store.rows import RowCodec, kind_of
from worker.store.tables import STATE_TYPE, flow_run, flow_run_state

# A statement that takes longer is taken for lost (a silent network): waited out and given again.
# Longer than the locks that maintenance holds for moments; seconds.
COMMAND_TIMEOUT = 60.0
CONNECT_TIMEOUT = 10.0

# Of columns by which rows are looked up.
_ARRAY_TYPES = {"uuid": "uuid[]", "text": "text[]"}
_CASTS = {"json": "::text::jsonb", "state": f"::text::{STATE_TYPE}"}

# What one row can be blamed for; everything else is the database's trouble.
_ROW_ERRORS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    UnicodeEncodeError,
    OverflowError,
)
# InternalClientError: asyncpg's own state machine, when a connection ends at the wrong moment.
FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

_PREFECT_JOINS = """
LEFT JOIN artifact a ON a.id = s.result_artifact_id
LEFT JOIN work_queue q ON q.id = r.work_queue_id
LEFT JOIN work_pool p ON p.id = q.work_pool_id
"""


_READ = """
SELECT {runs}, {states}, {pool}
FROM unnest({keys}) AS k({names})
JOIN flow_run r ON {match}
LEFT JOIN flow_run_state s ON s.id = r.state_id
{joins}
"""


def _read(keys: str, names: str, match: str, *, prefect: bool) -> str:
    states = _columns(flow_run_state, "s")
    if prefect:
        # ``FlowRunState.data``: older states keep it themselves, newer ones in an artifact.
        states = states.replace('s."data"', "coalesce(s.data, a.data::jsonb)")
    return _READ.format(
        runs=_columns(flow_run, "r"),
        states=states,
        pool="p.id, p.name, q.name" if prefect else "NULL::uuid, NULL::text, NULL::text",
        joins=_PREFECT_JOINS if prefect else "",
        keys=keys,
        names=names,
        match=match,
    )


def _columns(table: sa.Table, alias: str) -> str:
    return ", ".join(f'{alias}."{column.name}"' for column in table.columns)


class PostgreSQL:
    """A pool of connections. Its methods may be called from several tasks."""

    def __init__(self, pool: "asyncpg.Pool[Any]", *, prefect: bool = False) -> None:
        self._pool = pool
        self._prefect = prefect
        self._codec = RowCodec("postgresql")
        self._read_by_key = _read(
            "$1::uuid[], $2::text[]",
            "flow_id, key",
            "r.flow_id = k.flow_id AND r.idempotency_key = k.key",
            prefect=prefect,
        )
        self._read_by_id = _read("$1::uuid[]", "id", "r.id = k.id", prefect=prefect)

    @classmethod
    async def connect(cls, url: URL, *, prefect: bool = False) -> "PostgreSQL":
        """Connect; raises what asyncpg raises."""
        pool = await asyncpg.create_pool(
            dsn(url),
            min_size=1,
            max_size=2,
            timeout=CONNECT_TIMEOUT,
            command_timeout=COMMAND_TIMEOUT,
            server_settings={"application_name": "flow-run-worker"},
            # Nothing of a session is changed, so there is nothing to reset: it would be one more
            # round trip a batch.
            reset=_keep,
            init=_plan_by_index,
        )
        return cls(pool, prefect=prefect)

    async def close(self) -> None:
        """Close the connections, by force where they don't close by themselves in time."""
        try:
            await asyncio.wait_for(self._pool.close(), CONNECT_TIMEOUT)
        except TimeoutError:
            self._pool.terminate()

    async def ping(self) -> None:
        """Raise Fault unless the database answers."""
        with faults():
            await self._pool.fetchval("SELECT 1")

    async def try_writing(self, run: FlowRun) -> None:
        """Raise Fault unless the database writes; what is wrong with the run itself is passed over."""
        new = parameter([run])
        with faults(), suppress(*_ROW_ERRORS):
            async with self._pool.acquire() as connection:
                transaction = connection.transaction()
                await transaction.start()
                try:
                    await connection.fetch(INSERT, new)
                finally:
                    await transaction.rollback()

    async def insert(self, runs: Sequence[NewRun]) -> dict[UUID, FlowRun | Refusal]:
        """Insert runs with their states; those that conflict with a run that exists are left out.

        Returns: By id, the runs that were inserted, and a refusal for each that PostgreSQL can't
            store. These are found by halving, so that the others are stored, each half in a
            transaction of its own.

        Raises: Fault: the database is away or busy. Nothing of the last statement was stored, or
            all of it.
        """
        if not runs:
            return {}
        rows = [new.run for new in runs]
        new = parameter(rows)
        subflows = [new for new in runs if self._prefect and new.run.parent_task_run_id is not None]
        try:
            with faults():
                if subflows:
                    inserted = await self._insert_with_parents(subflows, new)
                else:
                    inserted = await self._pool.fetch(INSERT, new)
        except _ROW_ERRORS as error:
            if len(runs) == 1:
                return {rows[0].id: refused_by_database(error, asyncpg.IntegrityConstraintViolationError)}
            half = len(runs) // 2
            return {**await self.insert(runs[:half]), **await self.insert(runs[half:])}
        by_id = {run.id: run for run in rows}
        return {row[0]: by_id[row[0]] for row in inserted}

    async def _insert_with_parents(self, subflows: Sequence[NewRun], new: list[str]) -> list[Any]:
        """Insert, and let the parent task runs of those that are new follow, in one transaction."""
        async with self._pool.acquire() as connection, connection.transaction():
            inserted = await connection.fetch(INSERT, new)
            new_ids = {row[0] for row in inserted}
            for subflow in subflows:
                if subflow.run.id in new_ids:
                    query = f"{_select(task_run)} WHERE id = $1 FOR UPDATE"
                    parent = self._codec.row(
                        task_run, await connection.fetchrow(query, subflow.run.parent_task_run_id)
                    )
                    state, changes = follow(parent, subflow, datetime.now(UTC))
                    await connection.execute(
                        _insert_statement(task_run_state, state), *self._codec.values(task_run_state, state)
                    )
                    update = _update_statement(task_run, changes)
                    await connection.execute(update, *self._codec.values(task_run, changes), parent["id"])
        return list(inserted)

    async def rows(self, table: sa.Table, column: str, values: Sequence[Any]) -> list[Mapping[str, Any]]:
        """See :class:`worker.store.prefect.Lookup`."""
        array = _ARRAY_TYPES[kind_of(table.columns[column])]
        with faults():
            found = await self._pool.fetch(f"{_select(table)} WHERE {column} = ANY($1::{array})", values)
        return [self._codec.row(table, row) for row in found]

    async def read_by_key(self, keys: Sequence[tuple[UUID, str]]) -> list[FlowRun]:
        """The runs of these flows and idempotency keys, as they are now."""
        if not keys:
            return []
        with faults():
            rows = await self._pool.fetch(self._read_by_key, *zip(*keys, strict=True))
        return [self._codec.read(row) for row in rows]

    async def read_by_id(self, ids: Sequence[UUID]) -> list[FlowRun]:
        """The runs of these ids, as they are now."""
        if not ids:
            return []
        with faults():
            rows = await self._pool.fetch(self._read_by_id, ids)
        return [self._codec.read(row) for row in rows]


async def _keep(_: Any) -> None:
    """Leave a connection as it is."""


async def _plan_by_index(connection: Any) -> None:
    """Never plan to read a whole table where an index is at hand, and all that is asked here has
    one.

    A plan is kept for as long as the connection, also that by which PostgreSQL checks a foreign
    key. One made while the table was empty would read all of it for each row, until the table is
    analyzed: slower with every batch. (Where a table is read whole all the same, this setting makes
    the plan look costly enough to be compiled: hence the second.)
    """
    await connection.execute("SET enable_seqscan = off; SET jit = off")


def _select(table: sa.Table) -> str:
    return f"SELECT {names(table)} FROM {table.name}"


def _insert_statement(table: sa.Table, row: Mapping[str, Any]) -> str:
    values = ", ".join(
        f"${number}{_CASTS.get(kind_of(table.columns[name]), '')}" for number, name in enumerate(row, start=1)
    )
    return f"INSERT INTO {table.name} ({', '.join(row)}) VALUES ({values})"


def _update_statement(table: sa.Table, changes: Mapping[str, Any]) -> str:
    values = ", ".join(
        f"{name} = ${number}{_CASTS.get(kind_of(table.columns[name]), '')}"
        for number, name in enumerate(changes, start=1)
    )
    return f"UPDATE {table.name} SET {values} WHERE id = ${len(changes) + 1}"


@contextmanager
def faults() -> Iterator[None]:
    """Turn what the database does to us into a Fault, and let pass what one row can be blamed for."""
    try:
        yield
    except _ROW_ERRORS:
        raise
    except FAULTS as error:
        raise Fault(f"PostgreSQL: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def dsn(url: URL) -> str:
    """The URL as asyncpg takes it, password included."""
    query = {("sslmode" if name == "ssl" else name): value for name, value in url.query.items()}
    return url.set(drivername="postgresql", query=query).render_as_string(hide_password=False)
