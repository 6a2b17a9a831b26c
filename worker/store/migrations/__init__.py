"""The schema of a database of our own: recognised, brought up to date, or refused; a Prefect
server's is left alone.

Alembic, with a version table of its own name, so that it can't be taken for Prefect's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL, Connection

from worker.contract.errors import Fault
from worker.store.engine import Database, open_database
from worker.store.opening import StoreError, opening, parse_url
from worker.store.prefect import MARKS, problems
from worker.store.tables import metadata

T = TypeVar("T")

VERSION_TABLE = "flow_run_worker_version"
# The key of the advisory lock that keeps workers which start together from migrating together:
# "flow-run" in ASCII.
ADVISORY_LOCK = 0x666C6F772D72756E


# Which kind of database is wanted, as the setting of this name says.
Kind = Literal["any", "prefect", "standalone"]


@dataclass(frozen=True, slots=True)
class Ensured:
    """A schema that is written to.

    Attributes:
        prefect: it is a Prefect server's.
        created: it is ours, and was made just now.
    """

    prefect: bool = False
    created: bool = False


async def ensure(database: URL | Database, *, upgrade: bool, kind: Kind = "any") -> Ensured:
    """See to it that the schema is one that this version writes to.

    Args:
        upgrade: bring it up to date; else it has to be.
        kind: with ``prefect``, nothing is made here.

    Raises:
        StoreError: it is behind, ahead, missing, of an unknown shape, or of the other kind.
        Fault: the database cannot be reached now; or a Prefect server's is demanded, and is not
            there yet. It may be about to: a server and its workers start together.
    """
    return await with_connection(database, lambda connection: _ensure(connection, upgrade=upgrade, kind=kind))


def make_no_file(url: URL, kind: Kind) -> None:
    """Call it before connecting, which makes an SQLite file that is not there.

    Raises:
        Fault: a Prefect server's is demanded, which makes the file by itself.
    """
    if kind == "prefect" and _is_missing(url):
        raise _awaited(f"There is no file {url.database}.")


def _is_missing(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and not Path(url.database or "").exists()


async def upgrade(url: str, kind: Kind = "any") -> tuple[str | None, str]:
    """Bring the schema up to date; returns the revisions before and after.

    Raises:
        StoreError, Fault: as :func:`ensure` does.
    """
    parsed = parse_url(url)
    make_no_file(parsed, kind)

    def run(connection: Connection) -> tuple[str | None, str]:
        before = _revision(connection)
        if _ensure(connection, upgrade=True, kind=kind).prefect:
            prefect = _prefect_at(_prefect_revision(connection))
            return prefect, prefect
        return before, _revision(connection) or ""

    return await with_connection(parsed, run)


@dataclass(frozen=True, slots=True)
class Schema:
    """What stands in a database.

    Attributes:
        prefect: it is a Prefect server's.
        revision: its migration, of its own kind; None where nothing stands yet.
        head: the newest migration of ours.
        problems: why it can't be used, a line each; none if it can, or could after an upgrade.
    """

    prefect: bool
    revision: str | None
    head: str
    problems: list[str]


async def inspect(where: URL | Database, kind: Kind = "any") -> Schema:
    """Look at the schema; changes nothing, and makes no file.

    Args:
        kind: which kind of database is demanded; where a Prefect server's is, and its tables are
            not there, the problems are what keeps its server from making them.

    Raises:
        StoreError, Fault: as :func:`ensure` does.
    """
    if isinstance(where, URL) and _is_missing(where):
        return Schema(False, None, _head(), [])
    return await with_connection(where, lambda connection: _inspect(connection, kind))


async def current(url: str, kind: Kind = "any") -> str:
    """One line about the schema that is there."""
    schema = await inspect(parse_url(url), kind)
    if schema.prefect:
        verdict = f"not usable: {'; '.join(schema.problems)}" if schema.problems else "usable, never altered"
        return f"{_prefect_at(schema.revision)}; {verdict}"
    if schema.problems:
        return f"not usable: {'; '.join(schema.problems)}"
    if kind == "prefect":
        return "no tables of a Prefect server yet: start it, or run 'prefect server database upgrade'"
    if schema.revision is None:
        return "no schema yet: run 'flow-run-worker db upgrade'"
    behind = " (up to date)" if schema.revision == schema.head else f", behind {schema.head}"
    return f"standalone, at {schema.revision}{behind}"


def _inspect(connection: Connection, kind: Kind) -> Schema:
    if _is_prefect(connection):
        return Schema(True, _prefect_revision(connection), _head(), problems(sa.inspect(connection)))
    found: list[str] = []
    revision = _revision(connection)
    try:
        if kind == "prefect":
            _refuse_what_prefect_can_not_use(connection)
        else:
            _refuse_others(connection, revision)
    except StoreError as error:
        found.append(str(error))
    return Schema(False, revision, _head(), found)


def _is_prefect(connection: Connection) -> bool:
    return set(sa.inspect(connection).get_table_names()) >= MARKS


def _prefect_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _prefect_at(revision: str | None) -> str:
    return f"a Prefect server's database, at its migration {revision}"


def _ensure(connection: Connection, *, upgrade: bool, kind: Kind) -> Ensured:
    if _is_prefect(connection):
        this_is = f"This is {_prefect_at(_prefect_revision(connection))}"
        if kind == "standalone":
            raise StoreError(
                f"{this_is}, and WORKER_DATABASE_KIND demands one of the worker's own. It is left untouched."
            )
        if found := problems(sa.inspect(connection)):
            lacks = (
                f"{this_is}, and it lacks what the worker writes to: "
                f"{'; '.join(found)}. It is left untouched."
            )
            # A server that makes or upgrades its tables does so step by step.
            if kind == "prefect":
                raise _awaited(lacks)
            raise StoreError(f"{lacks} Use a Prefect version that deploy/docs/prefect.md names.")
        return Ensured(prefect=True)
    if kind == "prefect":
        _refuse_what_prefect_can_not_use(connection)
        raise _awaited("Prefect has not made its tables in this database yet.")
    # Most starts find nothing to do, and wait for nobody.
    head = _head()
    if _revision(connection) == head:
        return Ensured()
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    revision = _revision(connection)
    if revision == head:
        return Ensured()
    _refuse_others(connection, revision)
    if not upgrade:
        raise StoreError(
            f"The database schema is {'missing' if revision is None else f'behind (at {revision})'}: "
            "run 'flow-run-worker db upgrade', or start with --migrate."
        )
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return Ensured(created=revision is None)


def _awaited(what: str) -> Fault:
    return Fault(
        f"{what} WORKER_DATABASE_KIND demands a Prefect server's database: start its server on it, or run "
        "'prefect server database upgrade' there."
    )


def _refuse_what_prefect_can_not_use(connection: Connection) -> None:
    """No Prefect server could start on it, so that waiting for one is in vain."""
    tables = set(sa.inspect(connection).get_table_names())
    if VERSION_TABLE in tables or ("alembic_version" not in tables and tables & set(metadata.tables)):
        raise StoreError(
            "WORKER_DATABASE_KIND demands a Prefect server's database, and here are tables of the name "
            "'flow_run' that Prefect did not make, and on which its server can't start. They are left "
            "untouched. Name the database of the server, or an empty one for it."
        )


def _refuse_others(connection: Connection, revision: str | None) -> None:
    if revision is None:
        _refuse_strangers(connection)
    else:
        _refuse_newer(revision)


def _refuse_strangers(connection: Connection) -> None:
    present = set(sa.inspect(connection).get_table_names())
    ours = sorted(present & set(metadata.tables))
    if ours:
        raise StoreError(
            f"The database has a table '{ours[0]}' that this worker did not make: it is left untouched. "
            "Use a database of its own."
        )


def _refuse_newer(revision: str) -> None:
    if revision not in {
        script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()
    }:
        raise StoreError(
            f"The database schema is at {revision}, which this version does not know: "
            "a newer worker has upgraded it. Run that version."
        )


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE}
    ).get_current_revision()


def _head() -> str:
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


async def with_connection(where: URL | Database, work: Callable[[Connection], T]) -> T:
    """Run a function on a connection, in a transaction of its own; on SQLite in one that it begins.

    Raises:
        StoreError, Fault: the database can't be connected to.
    """
    if isinstance(where, URL):
        database = await open_database(where)
        try:
            return await with_connection(database, work)
        finally:
            await database.close()
    with opening(where.url):
        async with where.connect(transaction=not where.sqlite) as connection:
            result = await connection.run_sync(work)
            await connection.commit()
            return result
