"""The create statements on SQLite: one transaction for a batch, in one go on a thread of its own; knows rows, not requests.

The standard library's driver is used without an asynchronous layer, as that hands each statement to its thread, and a
batch would take hundreds of such hand-overs.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar
from uuid import UUID

from sqlalchemy.engine import URL

from worker.contract.errors import Fault, Unprocessable
from worker.contract.flow_run import FlowRun
from worker.store.rows import RUN_COLUMNS, STATE_COLUMNS, RowCodec

T = TypeVar("T")

# How long another writer's lock is waited for before it counts as a fault, which is waited out as well; seconds.
BUSY_TIMEOUT = 10.0

_INSERT_RUN = (
    f"INSERT INTO flow_run ({', '.join(RUN_COLUMNS)}) VALUES ({', '.join('?' * len(RUN_COLUMNS))}) ON CONFLICT DO NOTHING"
)
_INSERT_STATE = f"INSERT INTO flow_run_state ({', '.join(STATE_COLUMNS)}) VALUES ({', '.join('?' * len(STATE_COLUMNS))})"
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
    """The store's side to SQLite: one connection, used by one thread."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor, *, prefect: bool = False) -> None:
        self._connection = connection
        self._thread = thread
        self._codec = RowCodec("sqlite")
        joins = "LEFT JOIN work_queue q ON q.id = r.work_queue_id LEFT JOIN work_pool p ON p.id = q.work_pool_id"
        self._read = _READ.format(pool="p.id, p.name" if prefect else "NULL, NULL", joins=joins if prefect else "")

    @classmethod
    async def connect(cls, url: URL) -> "SQLite":
        """Open the file; raises what sqlite3 raises."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _open, url.database or ":memory:")
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(connection, thread)

    async def close(self) -> None:
        """Close the file."""
        await self._in_thread(self._connection.close)
        self._thread.shutdown()

    async def ping(self) -> None:
        """Raise Fault unless the file can be read."""
        await self._in_thread(lambda: self._connection.execute("SELECT 1 FROM flow_run LIMIT 1").fetchone())

    async def insert(self, runs: Sequence[FlowRun]) -> dict[UUID, FlowRun | Unprocessable]:
        """Insert runs with their states, as :meth:`PostgreSQL.insert` does; all in one transaction."""
        return await self._in_thread(lambda: self._insert(runs))

    async def read_by_key(self, keys: Sequence[tuple[UUID, str]]) -> list[FlowRun]:
        """The runs of these flows and idempotency keys, as they are now."""
        parameters = [(str(flow_id), key) for flow_id, key in keys]
        return await self._in_thread(lambda: self._select("r.flow_id = ? AND r.idempotency_key = ?", parameters))

    async def read_by_id(self, ids: Sequence[UUID]) -> list[FlowRun]:
        """The runs of these ids, as they are now."""
        return await self._in_thread(lambda: self._select("r.id = ?", [(str(each),) for each in ids]))

    def _insert(self, runs: Sequence[FlowRun]) -> dict[UUID, FlowRun | Unprocessable]:
        outcomes: dict[UUID, FlowRun | Unprocessable] = {}
        with self._transaction() as cursor:
            for run in runs:
                cursor.execute("SAVEPOINT run")
                try:
                    inserted = cursor.execute(_INSERT_RUN, self._codec.run_values(run)).rowcount
                    if inserted and run.state is not None:
                        cursor.execute(_INSERT_STATE, self._codec.state_values(run.state))
                except _ROW_ERRORS as error:
                    cursor.execute("ROLLBACK TO run")
                    outcomes[run.id] = Unprocessable(f"The database cannot store this run: {error}")
                else:
                    if inserted:
                        outcomes[run.id] = run
                cursor.execute("RELEASE run")
        return outcomes

    def _select(self, where: str, parameters: Sequence[tuple[str, ...]]) -> list[FlowRun]:
        query = f"{self._read} WHERE {where}"
        rows = (self._connection.execute(query, each).fetchone() for each in parameters)
        return [self._codec.read(row) for row in rows if row is not None]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        # IMMEDIATE: the lock is waited for at the start, where waiting works; an upgrade from a read lock fails at once.
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            yield cursor
            cursor.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise Fault(f"SQLite: {error}") from error


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    # Readers don't block the writer. FULL: a commit is on the disk before a reply says so; NORMAL can lose the last ones.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "cache_size = -65536"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection
