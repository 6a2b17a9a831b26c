"""The create statement on PostgreSQL: one round trip and one transaction for a batch; knows rows, not requests.

Runs and states go in as arrays, one parameter a column, so that the statement is prepared once whatever a batch's size,
and asyncpg writes them in binary. It is used below SQLAlchemy here, since parameters by the thousand cost more to compile
and bind than PostgreSQL takes to store them.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import URL

from worker.contract.errors import Fault, Unprocessable
from worker.contract.flow_run import FlowRun
from worker.store.rows import RUN_COLUMNS, RowCodec, kind_of
from worker.store.tables import STATE_TYPE, flow_run, flow_run_state

# A statement that takes longer is taken for lost (a silent network): waited out and given again. Longer than the locks
# that maintenance holds for moments; seconds.
COMMAND_TIMEOUT = 60.0
CONNECT_TIMEOUT = 10.0

_ARRAY_TYPES = {
    "uuid": "uuid[]",
    "timestamp": "timestamptz[]",
    "interval": "interval[]",
    "boolean": "boolean[]",
    "integer": "integer[]",
    "json": "text[]",
    "state": "text[]",
    "text": "text[]",
}
_CASTS = {"json": "::jsonb", "state": f"::{STATE_TYPE}"}

# What one row can be blamed for; everything else is the database's trouble.
_ROW_ERRORS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    UnicodeEncodeError,
    OverflowError,
)
# InternalClientError: asyncpg's own state machine, when a connection ends at the wrong moment.
_FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


def _columns(table: sa.Table, alias: str, *, cast: bool) -> str:
    return ", ".join(f'{alias}."{column.name}"{_CASTS.get(kind_of(column), "") if cast else ""}' for column in table.columns)


def _names(table: sa.Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.columns)


def _input(table: sa.Table, alias: str, first: int) -> str:
    arrays = ", ".join(f"${number}::{_ARRAY_TYPES[kind_of(column)]}" for number, column in enumerate(table.columns, start=first))
    return f"unnest({arrays}) AS {alias}({_names(table)})"


# No conflict target: the primary key counts as well, for runs whose id is their message's fingerprint.
_INSERT = f"""
WITH run AS (
    INSERT INTO flow_run ({_names(flow_run)})
    SELECT {_columns(flow_run, "r", cast=True)} FROM {_input(flow_run, "r", 1)}
    ON CONFLICT DO NOTHING
    RETURNING id
), state AS (
    INSERT INTO flow_run_state ({_names(flow_run_state)})
    SELECT {_columns(flow_run_state, "s", cast=True)}
    FROM {_input(flow_run_state, "s", len(RUN_COLUMNS) + 1)}
    JOIN run ON run.id = s.flow_run_id
)
SELECT id FROM run
"""

_READ = """
SELECT {runs}, {states}, {pool}
FROM unnest({keys}) AS k({names})
JOIN flow_run r ON {match}
LEFT JOIN flow_run_state s ON s.id = r.state_id
{joins}
"""


def _read(keys: str, names: str, match: str, *, prefect: bool) -> str:
    return _READ.format(
        runs=_columns(flow_run, "r", cast=False),
        states=_columns(flow_run_state, "s", cast=False),
        pool="p.id, p.name" if prefect else "NULL::uuid, NULL::text",
        joins="LEFT JOIN work_queue q ON q.id = r.work_queue_id LEFT JOIN work_pool p ON p.id = q.work_pool_id"
        if prefect
        else "",
        keys=keys,
        names=names,
        match=match,
    )


class PostgreSQL:
    """The store's side to PostgreSQL."""

    def __init__(self, pool: "asyncpg.Pool[Any]", *, prefect: bool = False) -> None:
        self._pool = pool
        self._codec = RowCodec("postgresql")
        self._read_by_key = _read(
            "$1::uuid[], $2::text[]",
            "flow_id, key",
            "r.flow_id = k.flow_id AND r.idempotency_key = k.key",
            prefect=prefect,
        )
        self._read_by_id = _read("$1::uuid[]", "id", "r.id = k.id", prefect=prefect)

    @classmethod
    async def connect(cls, url: URL) -> "PostgreSQL":
        """Connect; raises what asyncpg raises."""
        pool = await asyncpg.create_pool(
            dsn(url),
            min_size=1,
            max_size=2,
            timeout=CONNECT_TIMEOUT,
            command_timeout=COMMAND_TIMEOUT,
            server_settings={"application_name": "flow-run-worker"},
        )
        return cls(pool)

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

    async def insert(self, runs: Sequence[FlowRun]) -> dict[UUID, FlowRun | Unprocessable]:
        """Insert runs with their states; those that conflict with a run that exists are left out.

        Returns:
            By id, the runs that were inserted, and a refusal for each that PostgreSQL can't store. These are found by
            halving, so that the others are stored, each half in a transaction of its own.

        Raises:
            Fault: the database is away or busy. Nothing of the last statement was stored, or all of it.
        """
        if not runs:
            return {}
        run_arrays = zip(*(self._codec.run_values(run) for run in runs), strict=True)
        state_arrays = zip(*(self._codec.state_values(run.state) for run in runs if run.state is not None), strict=True)
        try:
            with faults():
                inserted = await self._pool.fetch(_INSERT, *run_arrays, *state_arrays)
        except _ROW_ERRORS as error:
            if len(runs) == 1:
                return {runs[0].id: Unprocessable(f"The database cannot store this run: {first_line(error)}")}
            half = len(runs) // 2
            return {**await self.insert(runs[:half]), **await self.insert(runs[half:])}
        by_id = {run.id: run for run in runs}
        return {row[0]: by_id[row[0]] for row in inserted}

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


@contextmanager
def faults() -> Iterator[None]:
    """Turn what the database does to us into a Fault, and let pass what one row can be blamed for."""
    try:
        yield
    except _ROW_ERRORS:
        raise
    except _FAULTS as error:
        raise Fault(f"PostgreSQL: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def dsn(url: URL) -> str:
    """The URL as asyncpg takes it, password included."""
    query = {("sslmode" if name == "ssl" else name): value for name, value in url.query.items()}
    return url.set(drivername="postgresql", query=query).render_as_string(hide_password=False)
