"""The create statements on SQLite: one transaction for a batch; knows rows, not requests.

Rows are written on the event loop, since they are microseconds each, and a thread that writes them
would fight the loop for the interpreter at every one. What may take long, waiting for another
writer's lock and for the disk, is left to a thread of its own. The standard library's driver is
used without an asynchronous layer, as that hands over each statement.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import URL

from worker.contract.encoding import dumps
from worker.contract.errors import Fault, Refusal
from worker.contract.flow_run import FlowRun
from worker.creation import NewRun
from worker.store.outcome import refused_by_database
from worker.store.prefect import follow, task_run, task_run_state
from worker.store.rows import RUN_COLUMNS, STATE_COLUMNS, RowCodec

T = TypeVar("T")

# How long another writer's lock is waited for before it counts as a fault, which is waited out as
# well; seconds.
BUSY_TIMEOUT = 10.0

_INSERT_RUN = f"INSERT INTO flow_run ({', '.join(RUN_COLUMNS)}) VALUES ({', '.join('?' * len(RUN_COLUMNS))}) ON CONFLICT DO NOTHING"
_INSERT_STATE = (
    f"INSERT INTO flow_run_state ({', '.join(STATE_COLUMNS)}) VALUES ({', '.join('?' * len(STATE_COLUMNS))})"
)
_READ = f"""
SELECT {", ".join(f"r.{name}" for name in RUN_COLUMNS)}, {", ".join(f"s.{name}" for name in STATE_COLUMNS)}, {{pool}}
FROM flow_run r LEFT JOIN flow_run_state s ON s.id = r.state_id {{joins}}
"""

_ROW_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    OverflowError,
)


class SQLite:
    """The store's side to SQLite: one connection, used by one caller at a time."""

    def __init__(
        self, connection: sqlite3.Connection, thread: ThreadPoolExecutor, *, prefect: bool = False
    ) -> None:
        self._connection = connection
        self._thread = thread
        self._prefect = prefect
        self._turn = asyncio.Lock()
        self._codec = RowCodec("sqlite")
        joins = (
            "LEFT JOIN artifact a ON a.id = s.result_artifact_id "
            "LEFT JOIN work_queue q ON q.id = r.work_queue_id LEFT JOIN work_pool p ON p.id = q.work_pool_id"
        )
        self._read = _READ.format(
            pool="p.id, p.name, q.name" if prefect else "NULL, NULL, NULL", joins=joins if prefect else ""
        )
        if prefect:
            # ``FlowRunState.data``: older states keep it themselves, newer ones in an artifact.
            self._read = self._read.replace("s.data", "coalesce(s.data, a.data)")

    @classmethod
    async def connect(cls, url: URL, *, prefect: bool = False) -> "SQLite":
        """Open the file; raises what sqlite3 raises."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(
                thread, _open, url.database or ":memory:"
            )
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(connection, thread, prefect=prefect)

    async def close(self) -> None:
        """Close the file."""
        await self._in_thread(self._connection.close)
        self._thread.shutdown()

    async def ping(self) -> None:
        """Raise Fault unless the file can be read."""
        async with self._turn:
            await self._in_thread(
                lambda: self._connection.execute("SELECT 1 FROM flow_run LIMIT 1").fetchone()
            )

    async def try_writing(self, _: FlowRun) -> None:
        """Raise Fault unless the file can be written: its own version number is, with what it is
        already.
        """

        def write() -> None:
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            self._connection.execute(f"PRAGMA user_version = {version:d}")
            self._connection.commit()

        async with self._turn, self._transaction():
            await self._in_thread(write)

    async def insert(self, runs: Sequence[NewRun]) -> dict[UUID, FlowRun | Refusal]:
        """Insert runs with their states, as :meth:`PostgreSQL.insert` does; all in one transaction."""
        async with self._turn, self._transaction():
            with _faults():
                outcomes = {new.run.id: stored for new in runs if (stored := self._insert(new)) is not None}
            await self._in_thread(self._connection.commit)
        return outcomes

    async def rows(self, table: sa.Table, column: str, values: Sequence[Any]) -> list[Mapping[str, Any]]:
        """See :class:`worker.store.prefect.Lookup`."""
        wanted = dumps([str(value) for value in values]).decode()
        query = f"{_select(table)} WHERE {column} IN (SELECT value FROM json_each(?))"
        async with self._turn:
            with _faults():
                return [self._codec.row(table, row) for row in self._connection.execute(query, (wanted,))]

    async def read_by_key(self, keys: Sequence[tuple[UUID, str]]) -> list[FlowRun]:
        """The runs of these flows and idempotency keys, as they are now."""
        return await self._select(
            "r.flow_id = ? AND r.idempotency_key = ?", [(str(flow), key) for flow, key in keys]
        )

    async def read_by_id(self, ids: Sequence[UUID]) -> list[FlowRun]:
        """The runs of these ids, as they are now."""
        return await self._select("r.id = ?", [(str(each),) for each in ids])

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        """Begin one, which is committed within; if that fails or is cancelled, no lock stays
        behind.
        """
        try:
            await self._in_thread(self._begin)
            yield
        except BaseException:
            # After what the thread is at: a BEGIN that nobody waits for any more still takes the
            # lock.
            self._thread.submit(self._connection.rollback)
            raise

    def _begin(self) -> None:
        # IMMEDIATE: another writer's lock is waited for here, where waiting works; an upgrade from
        # a read lock fails at once.
        self._connection.execute("BEGIN IMMEDIATE")
        if self._prefect:
            # A run refers to its state and the state to its run: checked once both are there.
            self._connection.execute("PRAGMA defer_foreign_keys = ON")

    def _insert(self, new: NewRun) -> FlowRun | Refusal | None:
        """The run if it was inserted, a refusal if SQLite can't store it, None if it conflicts with
        one that exists.
        """
        run = new.run
        try:
            if not self._connection.execute(_INSERT_RUN, self._codec.run_values(run)).rowcount:
                return None
            if run.state is not None:
                self._connection.execute(_INSERT_STATE, self._codec.state_values(run.state))
            if self._prefect and run.parent_task_run_id is not None:
                self._let_parent_follow(new)
        except _ROW_ERRORS as error:
            # A statement that fails leaves nothing behind, but the run may be there without its
            # state.
            self._connection.execute("DELETE FROM flow_run WHERE id = ?", (str(run.id),))
            return refused_by_database(error, sqlite3.IntegrityError)
        return run

    def _let_parent_follow(self, new: NewRun) -> None:
        query = f"{_select(task_run)} WHERE id = ?"
        found = self._connection.execute(query, (str(new.run.parent_task_run_id),)).fetchone()
        parent = self._codec.row(task_run, found)
        state, changes = follow(parent, new, datetime.now(UTC))
        insert = f"INSERT INTO task_run_state ({', '.join(state)}) VALUES ({', '.join('?' * len(state))})"
        self._connection.execute(insert, self._codec.values(task_run_state, state))
        update = f"UPDATE task_run SET {', '.join(f'{name} = ?' for name in changes)} WHERE id = ?"
        self._connection.execute(update, [*self._codec.values(task_run, changes), str(parent["id"])])

    async def _select(self, where: str, parameters: Sequence[tuple[str, ...]]) -> list[FlowRun]:
        query = f"{self._read} WHERE {where}"
        async with self._turn:
            with _faults():
                rows = [self._connection.execute(query, each).fetchone() for each in parameters]
        return [self._codec.read(row) for row in rows if row is not None]

    async def _in_thread(self, work: Callable[[], T]) -> T:
        with _faults():
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _select(table: sa.Table) -> str:
    return f"SELECT {', '.join(column.name for column in table.columns)} FROM {table.name}"


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise Fault(f"SQLite: {error}") from error


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            # Readers don't block the writer. To switch to it needs the file for itself, and does
            # not wait for that.
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    # FULL: a commit is on the disk before a reply says so; NORMAL can lose the last ones.
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "cache_size = -65536"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection
