"""A database's URL, and what the errors of opening it mean to who runs the worker."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from worker.contract.errors import Fault
from worker.store.errors import Blame, blame, driver_error, first_line


class StoreError(Exception):
    """The database is not as it has to be (URL, login, name, schema); waiting won't mend it. Its
    message says what to do.
    """


def parse_url(url: str) -> URL:
    """Read a database URL.

    Raises:
        StoreError: it is no URL, or of a database that isn't supported.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError(f"WORKER_DATABASE_URL is not a database URL: {error}") from None
    backend = parsed.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+asyncpg")
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:") or (parsed.database or "").startswith("file:"):
            raise StoreError(
                "WORKER_DATABASE_URL names no file: each connection would have a SQLite database of its own."
            )
        return parsed.set(drivername="sqlite+aiosqlite")
    raise StoreError(f"WORKER_DATABASE_URL names '{backend}': PostgreSQL and SQLite are supported.")


@contextmanager
def opening(url: URL) -> Iterator[None]:
    """Turn what goes wrong while connecting into a StoreError or, if it may pass, a Fault."""
    try:
        yield
    except (StoreError, Fault):
        raise
    except Exception as raised:
        error = driver_error(raised)
        where = f"{url.render_as_string(hide_password=True)}: {first_line(error)}"
        unusable = (ValueError, asyncpg.UndefinedObjectError, ArgumentError)
        if isinstance(error, sqlite3.Error) and blame(error) is not Blame.moment:
            advice = "Does the folder exist, and may the worker write there?"
        elif isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
            advice = "Check the user and the password."
        elif isinstance(error, asyncpg.InvalidCatalogNameError):
            advice = f"Create it: CREATE DATABASE {url.database};"
        elif isinstance(error, asyncpg.InsufficientPrivilegeError):
            advice = "Grant it to the worker's user."
        elif isinstance(error, unusable) or refuses_settings(error):
            advice = "Check what stands behind the '?' of the URL."
        elif isinstance(error, asyncpg.PostgresError) or blame(error) is not Blame.unforeseen:
            raise Fault(where) from error
        else:
            raise
        raise StoreError(f"{where}. {advice}") from error


def refuses_settings(error: BaseException) -> bool:
    """Whether who answers takes no setting of a session in the start of a connection: a pooler, as
    PgBouncer.
    """
    return isinstance(error, asyncpg.ProtocolViolationError) and "startup parameter" in str(error)
