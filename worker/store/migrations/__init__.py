"""The schema of a database of our own: recognised, brought up to date, or refused; a Prefect server's is left alone.

Alembic, with a version table of its own name, so that it can't be taken for Prefect's.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from worker.store.prefect import MARKS, problems
from worker.store.store import StoreError, opening, parse_url
from worker.store.tables import metadata

T = TypeVar("T")

VERSION_TABLE = "flow_run_worker_version"
# The key of the advisory lock that keeps workers which start together from migrating together: "flow-run" in ASCII.
ADVISORY_LOCK = 0x666C6F772D72756E


async def ensure(url: URL, *, upgrade: bool) -> bool:
    """See to it that the schema is one that this version writes to; returns whether it is a Prefect server's.

    Args:
        upgrade: bring it up to date; else it has to be.

    Raises:
        StoreError: it is behind, ahead, missing, or of an unknown shape.
        Fault: the database cannot be reached now.
    """
    return await _with_connection(url, lambda connection: _ensure(connection, upgrade=upgrade))


async def upgrade(url: str) -> tuple[str | None, str]:
    """Bring the schema up to date; returns the revisions before and after."""
    parsed = parse_url(url)

    def run(connection: Connection) -> tuple[str | None, str]:
        before = _revision(connection)
        if _ensure(connection, upgrade=True):
            prefect = _describe_prefect(connection)
            return prefect, prefect
        return before, _revision(connection) or ""

    return await _with_connection(parsed, run)


async def current(url: str) -> str:
    """One line about the schema that is there."""
    return await _with_connection(parse_url(url), _current)


def _current(connection: Connection) -> str:
    if _is_prefect(connection):
        found = problems(sa.inspect(connection))
        return _describe_prefect(connection) + (f"; not usable: {'; '.join(found)}" if found else "; usable, never altered")
    revision = _revision(connection)
    if revision is None:
        return "no schema yet: run 'flow-run-worker db upgrade'"
    head = _head()
    return f"standalone, at {revision}" + (" (up to date)" if revision == head else f", behind {head}")


def _is_prefect(connection: Connection) -> bool:
    return set(sa.inspect(connection).get_table_names()) >= MARKS


def _describe_prefect(connection: Connection) -> str:
    revision = MigrationContext.configure(connection).get_current_revision()
    return f"a Prefect server's database, at its migration {revision}"


def _ensure(connection: Connection, *, upgrade: bool) -> bool:
    if _is_prefect(connection):
        if found := problems(sa.inspect(connection)):
            raise StoreError(
                f"This is {_describe_prefect(connection)}, and it lacks what the worker writes to: {'; '.join(found)}. "
                "It is left untouched. Use a Prefect version that the README names."
            )
        return True
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    revision = _revision(connection)
    if revision is None:
        _refuse_strangers(connection)
    if revision == _head():
        return False
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise StoreError(
            f"The database schema is at {revision}, which this version does not know: a newer worker has upgraded it. "
            "Run that version."
        )
    if not upgrade:
        raise StoreError(
            f"The database schema is {'missing' if revision is None else f'behind (at {revision})'}: "
            "run 'flow-run-worker db upgrade', or start with --migrate."
        )
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return False


def _refuse_strangers(connection: Connection) -> None:
    present = set(sa.inspect(connection).get_table_names())
    ours = sorted(present & set(metadata.tables))
    if ours:
        raise StoreError(
            f"The database has a table '{ours[0]}' that this worker did not make: it is left untouched. "
            "Use a database of its own."
        )


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _head() -> str:
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


async def _with_connection(url: URL, work: Callable[[Connection], T]) -> T:
    with opening(url):
        if url.get_backend_name() == "sqlite":
            return await asyncio.to_thread(_with_sqlite, url, work)
        engine = create_async_engine(url, poolclass=NullPool)
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(work)
        finally:
            await engine.dispose()


def _with_sqlite(url: URL, work: Callable[[Connection], T]) -> T:
    # Autocommit: the driver's own BEGIN comes late and takes no lock; _ensure begins where it has to.
    engine = sa.create_engine(
        url.set(drivername="sqlite"), poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args={"timeout": 60}
    )
    try:
        with engine.connect() as connection:
            result = work(connection)
            connection.exec_driver_sql("COMMIT") if _in_transaction(connection) else None
            return result
    finally:
        engine.dispose()


def _in_transaction(connection: Connection) -> bool:
    driver = connection.connection.driver_connection
    return bool(getattr(driver, "in_transaction", False))
