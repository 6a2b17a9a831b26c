"""The schema of a database of our own: recognised, brought up to date, or refused; a Prefect
server's is left alone.

Alembic, with a version table of its own name, so that it can't be taken for Prefect's.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from worker.contract.errors import Fault
from worker.store.engine import Database, open_database, parse_url
from worker.store.errors import StoreError, opening
from worker.store.guard import lacks_unique_index
from worker.store.prefect import MARKS, newer_columns, problems
from worker.store.tables import metadata

T = TypeVar("T")

VERSION_TABLE = "flow_run_worker_version"
# The key of the advisory lock that keeps workers which start together from migrating together:
# "flow-run" in ASCII.
ADVISORY_LOCK = 0x666C6F772D72756E

# Which kind of database is wanted, as the setting of this name says.
Kind = Literal["any", "prefect", "standalone"]


@dataclass(frozen=True, slots=True)
class Schema:
    """What stands in a database.

    Attributes:
        prefect: it is a Prefect server's.
        revision: its migration, of its own kind; None where nothing stands yet.
        head: the newest migration of ours.
        problems: why it can't be used, a line each; none if it can, or could after an upgrade.
        lacks: columns that are newer than the database, and that the worker does without.
    """

    prefect: bool
    revision: str | None
    head: str
    problems: list[str]
    lacks: frozenset[str] = frozenset()


async def ensure(where: URL | Database, *, upgrade: bool, kind: Kind = "any") -> Schema:
    """See to it that the schema is one that this version writes to.

    Args:
        upgrade: bring it up to date; else it has to be.
        kind: with ``prefect``, nothing is made here.

    Returns:
        The schema that was found, before an upgrade, with the columns that it lacks after it.

    Raises:
        StoreError: it is behind, ahead, missing, of an unknown shape, or of the other kind.
        Fault: the database cannot be reached now; or a Prefect server's is demanded, and is not
            there yet. It may be about to: a server and its workers start together.
    """
    if isinstance(where, URL):
        make_no_file(where, kind)
    return await with_connection(where, lambda connection: _ensure(connection, upgrade=upgrade, kind=kind))


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
    """Bring the schema up to date; returns the revisions before and after. Raises as
    :func:`ensure` does.
    """
    found = await ensure(parse_url(url), upgrade=True, kind=kind)
    if found.prefect:
        return _prefect_at(found), _prefect_at(found)
    return found.revision, found.head


async def inspect(where: URL | Database, kind: Kind = "any") -> Schema:
    """Look at the schema; changes nothing, and makes no file. Raises as :func:`open_database` does.

    Args:
        kind: which kind of database is demanded; where a Prefect server's is, and its tables are
            not there, the problems are what keeps its server from making them.
    """
    if isinstance(where, URL) and _is_missing(where):
        return Schema(False, None, _head(), [])
    return await with_connection(where, lambda connection: _inspect(connection, kind))


async def current(url: str, kind: Kind = "any") -> str:
    """One line about the schema that is there."""
    schema = await inspect(parse_url(url), kind)
    unusable = f"not usable: {'; '.join(schema.problems)}" if schema.problems else ""
    if schema.prefect:
        without = f", older than {', '.join(sorted(schema.lacks))}" if schema.lacks else ""
        return f"{_prefect_at(schema)}; {unusable or 'usable, never altered'}{without}"
    if unusable:
        return unusable
    if kind == "prefect":
        return "no tables of a Prefect server yet: start it, or run 'prefect server database upgrade'"
    if schema.revision is None:
        return "no schema yet: run 'flow-run-worker db upgrade'"
    behind = " (up to date)" if schema.revision == schema.head else f", behind {schema.head}"
    return f"standalone, at {schema.revision}{behind}"


def _inspect(connection: Connection, kind: Kind) -> Schema:
    inspector = sa.inspect(connection)
    tables = set(inspector.get_table_names())
    prefect = tables >= MARKS
    revision = _revision_in(connection, "alembic_version" if prefect else VERSION_TABLE, tables)
    ours = sorted(tables & set(metadata.tables))
    found: list[str] = []
    if prefect:
        found = [*problems(inspector), *lacks_unique_index(connection)]
    elif kind == "prefect":
        # No Prefect server could start on it, so that waiting for one is in vain.
        if VERSION_TABLE in tables or (ours and "alembic_version" not in tables):
            found = [
                "WORKER_DATABASE_KIND demands a Prefect server's database, and here are tables of the name "
                "'flow_run' that Prefect did not make, and on which its server can't start. They are left "
                "untouched. Name the database of the server, or an empty one for it."
            ]
    elif revision is None:
        if ours:
            found = [
                f"The database has a table '{ours[0]}' that this worker did not make: it is left untouched. "
                "Use a database of its own."
            ]
    elif revision not in _revisions():
        found = [
            f"The database schema is at {revision}, which this version does not know: "
            "a newer worker has upgraded it. Run that version."
        ]
    else:
        found = lacks_unique_index(connection)
    return Schema(prefect, revision, _head(), found, newer_columns(inspector))


def _ensure(connection: Connection, *, upgrade: bool, kind: Kind) -> Schema:
    found = _inspect(connection, kind)
    # Most starts find nothing to do, and wait for nobody.
    if not found.prefect and kind != "prefect" and found.revision != found.head:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        found = _inspect(connection, kind)
    if found.prefect:
        this_is = f"This is {_prefect_at(found)}"
        if kind == "standalone":
            raise StoreError(
                f"{this_is}, and WORKER_DATABASE_KIND demands one of the worker's own. It is left untouched."
            )
        if found.problems:
            lacks = (
                f"{this_is}, and it lacks what the worker writes to: "
                f"{'; '.join(found.problems)}. It is left untouched."
            )
            # A server that makes or upgrades its tables does so step by step.
            if kind == "prefect":
                raise _awaited(lacks)
            raise StoreError(f"{lacks} Use a Prefect version that deploy/docs/prefect.md names.")
        return found
    if found.problems:
        raise StoreError(found.problems[0])
    if kind == "prefect":
        raise _awaited("Prefect has not made its tables in this database yet.")
    if found.revision == found.head:
        return found
    if not upgrade:
        state = "missing" if found.revision is None else f"behind (at {found.revision})"
        raise StoreError(
            f"The database schema is {state}: run 'flow-run-worker db upgrade', or start with --migrate."
        )
    from worker.store.migrations.upgrading import run_migrations

    run_migrations(connection)
    return replace(found, lacks=newer_columns(sa.inspect(connection)))


def _prefect_at(schema: Schema) -> str:
    return f"a Prefect server's database, at its migration {schema.revision}"


def _awaited(what: str) -> Fault:
    return Fault(
        f"{what} WORKER_DATABASE_KIND demands a Prefect server's database: start its server on it, or run "
        "'prefect server database upgrade' there."
    )


def _revision_in(connection: Connection, table: str, tables: Collection[str]) -> str | None:
    """What Alembic's version table says; None where it is not among the tables, or empty."""
    if table not in tables:
        return None
    revision = connection.execute(sa.select(sa.column("version_num", sa.String)).select_from(sa.table(table)))
    return revision.scalar()


@cache
def _revisions() -> Sequence[str]:
    """Our migrations in their order, as their files are named. Alembic is not needed for that."""
    return sorted(file.name.partition("_")[0] for file in Path(__file__).parent.glob("versions/[0-9]*.py"))


def _head() -> str:
    return _revisions()[-1]


async def with_connection(where: URL | Database, work: Callable[[Connection], T]) -> T:
    """Run a function on a connection, in a transaction of its own; on SQLite in one that it begins.
    Raises as :func:`open_database` does.
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
            if where.sqlite:
                await connection.commit()
            return result
