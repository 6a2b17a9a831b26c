"""Recognises a database's schema. Upgrades or refuses our own, and never alters a Prefect server's.

Alembic's version table has a name of its own, so that it can't be taken for Prefect's.
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
from worker.store.errors import StoreError, WrongDatabase, opening
from worker.store.guard import lacks_unique_index
from worker.store.prefect import MARKS, newer_columns, problems
from worker.store.tables import metadata

T = TypeVar("T")

VERSION_TABLE = "flow_run_worker_version"
# The key of the advisory lock that keeps workers from migrating at the same time: "flow-run" in
# ASCII.
ADVISORY_LOCK = 0x666C6F772D72756E

_DEMANDED = (
    "WORKER_DATABASE_KIND=prefect, WORKER_PREFECT_API_URL or WORKER_DEPLOYMENT needs a Prefect server's "
    "database"
)
# The demanded kind of database, as in the setting WORKER_DATABASE_KIND.
Kind = Literal["any", "prefect", "standalone"]


@dataclass(frozen=True, slots=True)
class Schema:
    """The schema that was found in a database.

    Attributes:
        prefect: it is a Prefect server's.
        revision: its migration, Prefect's or ours; None if there is none yet.
        head: our newest migration.
        problems: why it can't be used, a line each; empty if it can, now or after an upgrade.
        lacks: columns newer than the database, which the worker can do without.
    """

    prefect: bool
    revision: str | None
    head: str
    problems: list[str]
    lacks: frozenset[str] = frozenset()


async def ensure(where: URL | Database, *, upgrade: bool, kind: Kind = "any") -> Schema:
    """Ensure that this version can write to the schema.

    Args:
        upgrade: bring the schema up to date (default: an outdated one is an error).
        kind: with ``prefect``, nothing is made here.

    Returns:
        The schema as found before an upgrade, with ``lacks`` as it is after the upgrade.

    Raises:
        StoreError: it is behind, ahead, missing, of an unknown shape, or of the other kind.
        Fault: the database cannot be reached now. Or a Prefect server's is demanded and has no
            tables yet: it may be starting together with its workers.
    """
    if isinstance(where, URL):
        make_no_file(where, kind)
    return await with_connection(where, lambda connection: _ensure(connection, upgrade=upgrade, kind=kind))


def make_no_file(url: URL, kind: Kind) -> None:
    """Keep us from making an SQLite file that Prefect must make. Call it before connecting.

    Raises:
        Fault: a Prefect server's database is demanded, and its server has not made the file yet.
    """
    if kind == "prefect" and _is_missing(url):
        raise _awaited(f"There is no file {url.database}.")


def _is_missing(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and not Path(url.database or "").exists()


async def upgrade(url: str, kind: Kind = "any") -> tuple[str | None, str]:
    """Upgrade the schema. Returns the revisions before and after. Raises as :func:`ensure` does."""
    found = await ensure(parse_url(url), upgrade=True, kind=kind)
    if found.prefect:
        return _prefect_at(found), _prefect_at(found)
    return found.revision, found.head


async def inspect(where: URL | Database, kind: Kind = "any") -> Schema:
    """Look at the schema. Changes nothing, and makes no file. Raises as :func:`open_database` does.

    Args:
        kind: the demanded kind of database. If it is ``prefect`` and the tables are missing, the
            problems are those that keep its server from making them.
    """
    if isinstance(where, URL) and _is_missing(where):
        return Schema(False, None, _head(), [])
    return await with_connection(where, lambda connection: _inspect(connection, kind))


async def current(url: str, kind: Kind = "any") -> str:
    """Describe the present schema in one line."""
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
        # No Prefect server could start on this database, so waiting for one is useless.
        if VERSION_TABLE in tables or (ours and "alembic_version" not in tables):
            found = [
                f"{_DEMANDED}, but the table 'flow_run' here is not Prefect's: its server can't start on it. "
                "It is left untouched. Name the database of the server, or an empty one for it."
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
    # Most starts find nothing to do, and take no lock.
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
                f"{this_is}, and the worker can't write to it: "
                f"{'; '.join(found.problems)}. It is left untouched."
            )
            # The server may be making or upgrading its tables, step by step.
            if kind == "prefect":
                raise _awaited(lacks)
            raise StoreError(f"{lacks} Use a Prefect version that deploy/docs/prefect.md names.")
        return found
    if found.problems:
        raise (WrongDatabase if kind == "prefect" else StoreError)(found.problems[0])
    if kind == "prefect":
        raise _awaited("Prefect has not made its tables in this database yet.")
    if found.revision == found.head:
        return found
    if not upgrade:
        state = "missing" if found.revision is None else f"behind (at {found.revision})"
        raise StoreError(
            f"The database schema is {state}: run 'flow-run-worker db upgrade', or start with --migrate."
        )
    _run_migrations(connection)
    return replace(found, lacks=newer_columns(sa.inspect(connection)))


def _run_migrations(connection: Connection) -> None:
    # Importing Alembic takes a tenth of a second, and most starts find the schema up to date.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent))
    command.upgrade(config, "head")


def _prefect_at(schema: Schema) -> str:
    return f"a Prefect server's database, at its migration {schema.revision}"


def _awaited(what: str) -> Fault:
    return Fault(
        f"{what} {_DEMANDED}: start its server on it, or run 'prefect server database upgrade' there."
    )


def _revision_in(connection: Connection, table: str, tables: Collection[str]) -> str | None:
    """The revision in Alembic's version table; None if the table is missing or empty."""
    if table not in tables:
        return None
    revision = connection.execute(sa.select(sa.column("version_num", sa.String)).select_from(sa.table(table)))
    return revision.scalar()


@cache
def _revisions() -> Sequence[str]:
    """Our migrations in order, from their files' names. This avoids importing Alembic."""
    return sorted(file.name.partition("_")[0] for file in Path(__file__).parent.glob("versions/[0-9]*.py"))


def _head() -> str:
    return _revisions()[-1]


async def with_connection(where: URL | Database, work: Callable[[Connection], T]) -> T:
    """Run a function on a connection, in a transaction. On SQLite the function begins it. Raises as
    :func:`open_database` does.
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
