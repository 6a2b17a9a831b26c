"""SQLAlchemy's engines for a database: how they set up connections, and when they drop one. Knows
no table.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
from pydantic_core import from_json
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from worker.contract.encoding import dumps_text
from worker.contract.errors import Fault
from worker.store.connector import CONNECT_TIMEOUT, PLANNING, is_pooler, local_only, read_url
from worker.store.errors import Blame, StoreError, blame, fault, opening
from worker.store.file import ConnectionLost, DatabaseFile
from worker.urls.database import read_database_url

# After this many seconds of one statement, ask whether the server is still there, and wait as long
# for the answer. With SQLAlchemy's two seconds to close a connection, this is less than 15 in all.
SILENCE_TIMEOUT = 5.0
# Seconds to wait for another writer's lock. A longer wait is a fault, and waited out like others.
BUSY_TIMEOUT = 10.0
# Seconds for connections to close before they are closed by force.
CLOSE_TIMEOUT = 3.0

# One connection creates runs, the other serves the health checks.
POOL_SIZE = 2


@dataclass(frozen=True)
class Database:
    """The engines for one database, with one pool of connections.

    Attributes:
        url: of the database.
        engine: commits after each statement.
        transactions: begins, commits and rolls back as this database needs it.
        pooler: a pooler lends us a session for one transaction at a time, as PgBouncer does.
        knock: opens a new connection, to see whether the server answers; None for SQLite.
        file: of SQLite.
    """

    url: URL
    engine: AsyncEngine
    transactions: AsyncEngine
    pooler: bool = False
    knock: Callable[[], Awaitable[Any]] | None = None
    file: DatabaseFile | None = None

    @property
    def sqlite(self) -> bool:
        """True for an SQLite file, false for a PostgreSQL server."""
        return self.engine.dialect.name == "sqlite"

    @asynccontextmanager
    async def connect(self, *, transaction: bool = False) -> AsyncIterator[AsyncConnection]:
        """A connection. It returns to the pool only if it can serve again.

        Args:
            transaction: commit once, at the end (default: after each statement).

        Raises:
            Fault: the database has fallen silent, or its file is gone. Or this connection's commits
                may be missing on the standby, or in the file at the path.
        """
        transaction = transaction or self.pooler
        engine = self.transactions if transaction else self.engine
        async with _unless_silent(self.knock):
            try:
                connection = await engine.connect()
            except Exception as error:
                raise Fault(str(fault(error))) from error  # connecting never is a run's fault
            server, serves = driver(connection), False
            local_only.discard(server)
            try:
                if self.file is not None:
                    await self.file.check_before(server)
                async with connection.begin() if transaction else nullcontext():
                    yield connection
                serves = True
            except Exception as error:
                serves = blame(error) is not Blame.connection and not isinstance(error, ConnectionLost)
                raise
            finally:
                # A cancelled statement may still get the lock that it waited for, and a transaction
                # that could not be ended would stay open.
                if not connection.invalidated and not (serves and self._is_idle(server)):
                    await connection.invalidate()
                await connection.close()
            if self.file is not None:
                self.file.check()
            if server in local_only:
                raise Fault("PostgreSQL: a commit did not wait for its synchronous standby")

    def _is_idle(self, server: Any) -> bool:
        if self.sqlite:
            return not server.in_transaction
        return not (server.is_closed() or server.is_in_transaction())

    async def close(self) -> None:
        """Close the connections, by force after :data:`CLOSE_TIMEOUT`."""
        for _ in range(POOL_SIZE):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.engine.dispose(), CLOSE_TIMEOUT)
                return


def driver(connection: AsyncConnection) -> Any:
    """The driver's own connection, asyncpg's or aiosqlite's. Calling it directly takes a third of
    the time.
    """
    assert connection.sync_connection is not None
    return connection.sync_connection.connection.driver_connection


@asynccontextmanager
async def _unless_silent(knock: Callable[[], Awaitable[Any]] | None) -> AsyncIterator[None]:
    """Wait for a slow statement. Give up when the server is gone. A new connection asks for the
    server, since a firewall may have dropped the old one silently.
    """
    if knock is None:
        yield
        return
    loop = asyncio.get_running_loop()
    asking: list[asyncio.Task[None]] = []

    async def ask() -> None:
        with suppress(OSError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            while True:
                with suppress(asyncpg.PostgresError):  # "too many connections" is an answer as well
                    (await asyncio.wait_for(knock(), SILENCE_TIMEOUT)).terminate()
                await asyncio.sleep(SILENCE_TIMEOUT)
        limit.reschedule(loop.time())

    timer = loop.call_later(SILENCE_TIMEOUT, lambda: asking.append(loop.create_task(ask())))
    limit = asyncio.timeout(None)
    try:
        async with limit:
            yield
    except TimeoutError:
        if limit.expired():
            silent = Fault("PostgreSQL: it has fallen silent")
            silent.ended = True
            raise silent from None
        raise
    finally:
        timer.cancel()
        for task in asking:
            task.cancel()


def parse_url(url: str) -> URL:
    """Read a database URL.

    Raises:
        StoreError: it is no URL, or names an unsupported database.
    """
    try:
        parsed = read_database_url(url)
    except ValueError as error:
        raise StoreError(f"WORKER_DATABASE_URL {error}") from None
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed
    if backend != "sqlite":
        raise StoreError(f"WORKER_DATABASE_URL names '{backend}': PostgreSQL and SQLite are supported.")
    file = parsed.database or ":memory:"
    if file == ":memory:" or file.startswith("file:"):
        raise StoreError(
            "WORKER_DATABASE_URL names no file: each connection would have a SQLite database of its own."
        )
    return parsed.set(drivername="sqlite+aiosqlite")


async def open_database(url: URL) -> Database:
    """Connect.

    Raises:
        StoreError, Fault: connecting failed; see :func:`worker.store.errors.opening`.
    """
    with opening(url):
        database = _sqlite(url) if url.get_backend_name() == "sqlite" else await _postgresql(url)
        try:
            async with database.engine.connect():
                return database
        except BaseException:
            await database.close()
            # When aiosqlite's thread ends, it calls this loop, which must not be closed yet.
            await asyncio.sleep(0.05)
            raise


def _engine(url: URL | str, pool_size: int, **connect_args: Any) -> AsyncEngine:
    return create_async_engine(
        url,
        isolation_level="AUTOCOMMIT",
        connect_args=connect_args,
        json_serializer=dumps_text,
        json_deserializer=from_json,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT,
        pool_use_lifo=True,  # one connection stays warm, with its statements prepared
        pool_reset_on_return=None,  # Database.connect ends each transaction
    )


def _transactions(engine: AsyncEngine, begin: str, commit: str = "", rollback: str = "") -> AsyncEngine:
    """The engine with these statements for transactions. For an empty one the driver does it."""
    engine = engine.execution_options()
    for moment, statements in (("begin", begin), ("commit", commit), ("rollback", rollback)):
        if statements:
            event.listen(engine.sync_engine, moment, _executes(statements))
    return engine


def _executes(statements: str) -> Callable[[Connection], None]:
    def execute(connection: Connection) -> None:
        if not connection.invalidated:
            adapted: Any = connection.connection.dbapi_connection
            adapted.run_async(lambda driver: driver.execute(statements))

    return execute


# PostgreSQL


async def _postgresql(url: URL) -> Database:
    connect, cache_size = read_url(url)
    begin = "BEGIN"
    unnamed = replace(connect, arguments={**connect.arguments, "statement_cache_size": 0})
    pooler = cache_size == 0 or await is_pooler(unnamed)
    if pooler:
        # Prepared statements have no names: the next transaction's session may have other ones of
        # that name. Settings are made per transaction, not per session.
        settings = {name: value for name, value in connect.settings.items() if name not in PLANNING}
        connect, cache_size = replace(unnamed, settings=settings), 0
        begin += "".join(f"; SET LOCAL {name} = {value}" for name, value in PLANNING.items())
    engine = _engine(
        "postgresql+asyncpg://", POOL_SIZE, async_creator_fn=connect, prepared_statement_cache_size=cache_size
    )
    event.listen(engine.sync_engine, "checkout", _only_if_open)
    transactions = _transactions(engine, begin, "COMMIT", "ROLLBACK")
    return Database(url, engine, transactions, pooler, connect)


def _only_if_open(connection: Any, *_: object) -> None:
    """Make the pool open another connection if the server closed this one, as in a restart."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


# SQLite


def _sqlite(url: URL) -> Database:
    _make_private(url.database or "")
    # No transactions of the driver's: they begin late, and without a lock.
    engine = _engine(url, 1, timeout=BUSY_TIMEOUT, isolation_level=None)
    file = DatabaseFile(engine, url.database or "")
    event.listen(engine.sync_engine, "connect", _set_pragmas)
    # IMMEDIATE waits for another writer's lock. Upgrading a read lock would fail at once.
    return Database(url, engine, _transactions(engine, "BEGIN IMMEDIATE"), file=file)


def _make_private(file: str) -> None:
    """Make a missing file readable for its owner only: it has the runs' parameters. SQLite would
    make it readable for all. SQLite's log gets the rights of the file.
    """
    with suppress(OSError):  # it exists, or SQLite itself will say why it can't be made
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _set_pragmas(connection: Any, _: object) -> None:
    # FULL: a commit is on disk before its reply. NORMAL can lose the last commits.
    pragmas = "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -65536"
    connection.run_async(lambda driver: driver.executescript(pragmas))


async def prepare_to_write(database: Database, *, prefect: bool) -> None:
    """Set up an SQLite file for writing, once its schema is known. Raises as :func:`open_database`
    does.
    """
    if not database.sqlite:
        return
    if prefect:
        # A run and its state refer to each other: check the keys at the commit.
        defer = _executes("PRAGMA defer_foreign_keys = ON")
        event.listen(database.transactions.sync_engine, "begin", defer)
    with opening(database.url):
        async with asyncio.timeout(BUSY_TIMEOUT), database.connect() as connection:
            while True:
                try:
                    # In this mode readers don't block the writer. The switch needs the file for
                    # itself, and fails at once if it is in use.
                    await driver(connection).execute_fetchall("PRAGMA journal_mode = WAL")
                    return
                except sqlite3.OperationalError as error:
                    if blame(error) is not Blame.moment:
                        raise
                await asyncio.sleep(0.02)
