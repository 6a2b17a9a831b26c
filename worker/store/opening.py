"""A database's URL, and what the errors of opening it mean to who runs the worker."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from worker.contract.errors import Fault
from worker.store.postgresql import FAULTS, first_line


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
    where = url.render_as_string(hide_password=True)
    try:
        yield
    except Exception as raised:
        error = _drivers(raised)
        if isinstance(error, sqlite3.Error):
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Fault(f"{where}: {error}") from error
            raise StoreError(
                f"{where}: {error}. Does the folder exist, and may the worker write there?"
            ) from error
        if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
            raise StoreError(f"{where}: {first_line(error)}. Check the user and the password.") from error
        if isinstance(error, asyncpg.InvalidCatalogNameError):
            raise StoreError(
                f"{where}: {first_line(error)}. Create it: CREATE DATABASE {url.database};"
            ) from error
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            raise StoreError(f"{where}: {first_line(error)}. Grant it to the worker's user.") from error
        if isinstance(error, (asyncpg.exceptions.ClientConfigurationError, asyncpg.UndefinedObjectError)):
            raise StoreError(
                f"{where}: {first_line(error)}. Check what stands behind the '?' of the URL."
            ) from error
        if isinstance(error, FAULTS):
            raise Fault(f"{where}: {first_line(error)}") from error
        raise


def _drivers(error: BaseException) -> BaseException:
    """The driver's own error beneath those that SQLAlchemy and its adapter make of it."""
    cause: BaseException | None = error if isinstance(error, DBAPIError) else None
    while isinstance(cause, Exception) and not isinstance(cause, (sqlite3.Error, *FAULTS)):
        cause = cause.__cause__
    return cause or error
