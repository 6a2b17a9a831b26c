"""The create statements on SQLite: one transaction for a batch; knows rows, not requests.

Rows are written on the event loop, since they are microseconds each, and a thread that writes them would fight the loop
for the interpreter at every one. What may take long, waiting for another writer's lock and for the disk, is left to a
thread of its own. The standard library's driver is used without an asynchronous layer, as that hands over each statement.
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
    """The store's side to SQLite: one connection, used by one caller at a time."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor, *, prefect: bool = False) -> None:
        self._connection = connection
        self._thread = thread
        self._turn = asyncio.Lock()
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
        async with self._turn:
            await self._in_thread(lambda: self._connection.execute("SELECT 1 FROM flow_run LIMIT 1").fetchone())

    async def insert(self, runs: Sequence[FlowRun]) -> dict[UUID, FlowRun | Unprocessable]:
        """Insert runs with their states, as :meth:`PostgreSQL.insert` does; all in one transaction."""
        async with self._turn:
            await self._in_thread(self._begin)
            with _faults():
                outcomes = {run.id: stored for run in runs if (stored := self._insert(run)) is not None}
            await self._in_thread(self._connection.commit)
        return outcomes

    async def read_by_key(self, keys: Sequence[tuple[UUID, str]]) -> list[FlowRun]:
        """The runs of these flows and idempotency keys, as they are now."""
        return await self._select("r.flow_id = ? AND r.idempotency_key = ?", [(str(flow), key) for flow, key in keys])

    async def read_by_id(self, ids: Sequence[UUID]) -> list[FlowRun]:
        """The runs of these ids, as they are now."""
        return await self._select("r.id = ?", [(str(each),) for each in ids])

    def _begin(self) -> None:
        # A caller that was cancelled may have left a transaction open. IMMEDIATE: another writer's lock is waited for
        # here, where waiting works; an upgrade from a read lock fails at once.
        self._connection.rollback()
        self._connection.execute("BEGIN IMMEDIATE")

    def _insert(self, run: FlowRun) -> FlowRun | Unprocessable | None:
        """The run if it was inserted, a refusal if SQLite can't store it, None if it conflicts with one that exists."""
        try:
            if not self._connection.execute(_INSERT_RUN, self._codec.run_values(run)).rowcount:
                return None
            if run.state is not None:
                self._connection.execute(_INSERT_STATE, self._codec.state_values(run.state))
        except _ROW_ERRORS as error:
            # A statement that fails leaves nothing behind, but the run may be there without its state.
            self._connection.execute("DELETE FROM flow_run WHERE id = ?", (str(run.id),))
            return Unprocessable(f"The database cannot store this run: {error}")
        return run

    async def _select(self, where: str, parameters: Sequence[tuple[str, ...]]) -> list[FlowRun]:
        query = f"{self._read} WHERE {where}"
        async with self._turn:
            with _faults():
                rows = [self._connection.execute(query, each).fetchone() for each in parameters]
        return [self._codec.read(row) for row in rows if row is not None]

    async def _in_thread(self, work: Callable[[], T]) -> T:
        with _faults():
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise Fault(f"SQLite: {error}") from error


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    # Readers don't block the writer. FULL: a commit is on the disk before a reply says so; NORMAL can lose the last ones.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "cache_size = -65536"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection
