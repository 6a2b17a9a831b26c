"""Finds the blame for a database error, which decides how the error is handled. Advises the
operator if opening a database fails. Knows no connection.
"""

import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

import asyncpg
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from worker.contract.errors import Fault, IntegrityConflict, Refusal, Unprocessable
from worker.observability.redaction import redact
from worker.store.rights import mended


class StoreError(Exception):
    """The URL, login, name or schema of the database is wrong. Waiting won't mend it. The message
    says what to do.
    """


class WrongDatabase(StoreError):
    """The settings need a Prefect server's database, and this is another."""


class Swallowed(Exception):
    """The database accepted a row without an error, but does not have it."""


class Blame(Enum):
    """The cause that an error names. A row may cause the others as well, see :func:`is_fault`."""

    row = "a row that this database does not take: it is refused, and the others are stored"
    batch = "a statement that took too long: half of it may be quick enough"
    connection = "a broken connection: it is dropped, and a new one may serve"
    moment = "the database at this moment, or a mistake that its operator has to mend"
    unforeseen = "none of these"


# By SQLSTATE; the longest matching prefix counts (PostgreSQL's manual, appendix A).
SQLSTATES = {
    "08": Blame.connection,  # connection exceptions
    "0A000": Blame.connection,  # "cached plan must not change result type": after a migration
    "22": Blame.row,  # data exceptions
    "23": Blame.row,  # integrity constraints
    "25": Blame.moment,  # transaction states
    "25006": Blame.connection,  # read-only: it may have been made while the server was a standby
    "26": Blame.connection,  # a prepared statement is missing: a pooler has changed the session
    "28": Blame.moment,  # login
    "3D": Blame.moment,  # no such database
    "3F": Blame.moment,  # no such schema
    "40": Blame.moment,  # deadlocks, serialization
    "42": Blame.moment,  # tables, columns or rights that have changed
    "42P05": Blame.connection,  # a prepared statement exists already: as 26
    "44": Blame.row,  # a view's check option
    "53": Blame.moment,  # disk, memory, connections
    "54": Blame.row,  # limits of the program, such as an index row's size
    "55": Blame.moment,  # locks
    "57": Blame.moment,  # an operator
    "57014": Blame.batch,  # statement_timeout
    "57P01": Blame.connection,  # the server shuts down
    "57P02": Blame.connection,  # the server crashed
    "57P03": Blame.connection,  # the server starts
    "57P05": Blame.connection,  # idle_session_timeout
    "58": Blame.moment,  # the operating system
    "P0": Blame.row,  # raised by a user's trigger
}

# By SQLite's primary result code.
SQLITE_CODES = {
    sqlite3.SQLITE_PERM: Blame.moment,
    sqlite3.SQLITE_BUSY: Blame.moment,
    sqlite3.SQLITE_LOCKED: Blame.moment,
    sqlite3.SQLITE_NOMEM: Blame.moment,
    sqlite3.SQLITE_READONLY: Blame.connection,  # also for a file that was replaced while it was open
    sqlite3.SQLITE_INTERRUPT: Blame.moment,
    sqlite3.SQLITE_IOERR: Blame.connection,
    sqlite3.SQLITE_CORRUPT: Blame.connection,
    sqlite3.SQLITE_FULL: Blame.moment,
    sqlite3.SQLITE_CANTOPEN: Blame.connection,
    sqlite3.SQLITE_PROTOCOL: Blame.moment,
    sqlite3.SQLITE_SCHEMA: Blame.moment,
    sqlite3.SQLITE_TOOBIG: Blame.row,
    sqlite3.SQLITE_CONSTRAINT: Blame.row,
    sqlite3.SQLITE_MISMATCH: Blame.row,
    sqlite3.SQLITE_AUTH: Blame.moment,
    sqlite3.SQLITE_NOTADB: Blame.connection,
}

# SQLSTATEs that leave no doubt: connections, login, resources, an operator, the operating system.
# A single row may cause any other one, by its policy, its trigger or the rows that it locks.
_FAULTS = ("08", "28", "3D", "53", "57P", "58")
# PostgreSQL's functions that raise errors of user code: PL/pgSQL's RAISE and ASSERT, and those of
# PL/Python, PL/Perl and PL/Tcl. Such errors may have any SQLSTATE.
_RAISED_BY_USER = frozenset(
    ("exec_stmt_raise", "exec_stmt_assert", "PLy_elog_impl", "plperl_util_elog", "croak_cstr", "pltcl_elog")
)
# Failures by deadlock, serialization, lock or time may not happen again. Runs with other failures
# are refused sooner, since many of them would fill the prefetch. Both numbers are guesses.
_CONTENDED = ("40", "55P03", "57014")
TRIES, TRIES_CONTENDED = 3, 8

# By class, for errors without a code; the first match counts.
CLASSES: dict[type[BaseException], Blame] = {
    UnicodeEncodeError: Blame.row,
    OverflowError: Blame.row,
    Swallowed: Blame.row,
    sqlite3.DataError: Blame.row,
    sqlite3.InterfaceError: Blame.row,  # a value that can't be bound
    sqlite3.ProgrammingError: Blame.row,  # the same
    PoolTimeout: Blame.moment,
    TimeoutError: Blame.batch,  # our own, for a statement at a database that answers
    OSError: Blame.connection,
    asyncpg.TargetServerAttributeNotMatched: Blame.moment,  # none of the hosts takes writes
    asyncpg.InterfaceError: Blame.connection,
    asyncpg.InternalClientError: Blame.connection,  # the connection ended while asyncpg was busy
}


def blame(error: BaseException) -> Blame:
    """The cause that an error names. SQLAlchemy's errors are unwrapped first."""
    error = driver_error(error)
    if state := getattr(error, "sqlstate", None):
        beginnings = (state[:length] for length in range(len(state), 1, -1))
        said = next((SQLSTATES[each] for each in beginnings if each in SQLSTATES), Blame.unforeseen)
        return Blame.unforeseen if said is not Blame.row and _is_raised(error) else said
    if code := getattr(error, "sqlite_errorcode", None):
        return SQLITE_CODES.get(code & 0xFF, Blame.unforeseen)
    return next((said for kind, said in CLASSES.items() if isinstance(error, kind)), Blame.unforeseen)


def is_fault(error: BaseException) -> bool:
    """True if an error proves that the database is away or busy, or writes nothing.

    Other errors are a fault only if the database can't write another row either.
    """
    if isinstance(error, Fault):
        return True
    error = driver_error(error)
    if state := getattr(error, "sqlstate", None):
        return state.startswith(_FAULTS) and not _is_raised_by_user(error)
    return blame(error) in (Blame.connection, Blame.moment)


def is_of_row(error: BaseException) -> bool:
    """True if user code (a trigger) or a policy rejects the row."""
    error = driver_error(error)
    by_policy = getattr(error, "server_source_function", None) == "ExecWithCheckOptions"
    return by_policy or _is_raised_by_user(error)


def _is_raised_by_user(error: BaseException) -> bool:
    # An error has a context if it was raised within a function.
    return bool(getattr(error, "context", None)) or _is_raised(error)


def _is_raised(error: BaseException) -> bool:
    return getattr(error, "server_source_function", None) in _RAISED_BY_USER


def is_gone(error: BaseException) -> bool:
    """True if a row refers to a missing one."""
    error = driver_error(error)
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, asyncpg.ForeignKeyViolationError) or code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY


def tries(error: BaseException) -> int:
    """How often to try a run that fails while the database writes others."""
    error = driver_error(error)
    state = getattr(error, "sqlstate", None) or ""
    contended = state.startswith(_CONTENDED) and not _is_raised_by_user(error)
    contended = contended or isinstance(error, TimeoutError)
    return TRIES_CONTENDED if contended else TRIES


def refusal(error: BaseException) -> Refusal:
    """The answer to a request whose row the database does not take."""
    error = driver_error(error)
    if isinstance(error, Swallowed):
        return IntegrityConflict("The database does not keep this run: a trigger takes its row away.")
    if isinstance(error, (asyncpg.IntegrityConstraintViolationError, sqlite3.IntegrityError)):
        return IntegrityConflict(str(error))
    advice = f". {mended(str(error))}" if isinstance(error, asyncpg.InsufficientPrivilegeError) else ""
    return Unprocessable(f"The database cannot store this run: {error}{advice}")


def fault(error: BaseException) -> Fault:
    """The fault to wait out, with the error in one line."""
    if isinstance(error, Fault):
        return error
    error = driver_error(error)
    which = "SQLite" if isinstance(error, sqlite3.Error) else "PostgreSQL"
    made = Fault(f"{which}: {first_line(error)}")
    made.ended = blame(error) is Blame.connection
    return made


def driver_error(error: BaseException) -> BaseException:
    """The driver's own error beneath SQLAlchemy's."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return error
    return error.orig.__cause__ or error.orig


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]


@contextmanager
def opening(url: URL) -> Iterator[None]:
    """Turn an error while connecting into a StoreError or, if it may pass, a Fault."""
    try:
        yield
    except (StoreError, Fault):
        raise
    except Exception as raised:
        error = driver_error(raised)
        where = f"{redact(url.render_as_string(hide_password=False))}: {first_line(error)}"
        unusable = (ValueError, asyncpg.UndefinedObjectError, ArgumentError)
        if isinstance(error, sqlite3.Error) and blame(error) is not Blame.moment:
            advice = "Does the folder exist, and may the worker write there?"
        elif isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
            advice = "Check the user and the password."
        elif isinstance(error, asyncpg.InvalidCatalogNameError):
            advice = f"Create it: CREATE DATABASE {url.database};"
        elif isinstance(error, asyncpg.InsufficientPrivilegeError):
            advice = "Grant it to the worker's user."
        elif isinstance(error, ssl.SSLCertVerificationError):
            advice = "Name the authority of the server's certificate: sslrootcert=FILE or =system."
        elif isinstance(error, unusable) or refuses_settings(error):
            advice = "Check the options behind the '?' of the URL."
        elif isinstance(error, asyncpg.PostgresError) or blame(error) is not Blame.unforeseen:
            raise Fault(where) from error
        else:
            raise
        raise StoreError(f"{where}. {advice}") from error


def refuses_settings(error: BaseException) -> bool:
    """True if a pooler, such as PgBouncer, refuses the settings at the start of a session."""
    return isinstance(error, asyncpg.ProtocolViolationError) and "startup parameter" in str(error)
