"""What an error of a database says: who is to blame for it, and so what is done about it; and what
the errors of opening one mean to who runs the worker. Knows no connection.
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
    """The database is not as it has to be (URL, login, name, schema); waiting won't mend it. Its
    message says what to do.
    """


class Swallowed(Exception):
    """The database has taken a row without an error, and does not have it."""


class Blame(Enum):
    """What an error says. All but the first may be a row's fault as well, see :func:`is_fault`."""

    row = "a row that this database does not take: it is refused, and the others are stored"
    batch = "a statement that took too long: half of it may not"
    connection = "a connection that serves no more: it is dropped, and a new one may serve"
    moment = "the database at this moment, or what its operator has to mend"
    unforeseen = "none of these"


# By SQLSTATE; the longest beginning counts (PostgreSQL's manual, appendix A).
SQLSTATES = {
    "08": Blame.connection,  # connection exceptions
    "0A000": Blame.connection,  # "cached plan must not change result type": after a migration
    "22": Blame.row,  # data exceptions
    "23": Blame.row,  # integrity constraints
    "25": Blame.moment,  # transaction states
    "25006": Blame.connection,  # read-only: it may have been made while the server was a standby
    "26": Blame.connection,  # a prepared statement that is gone: a pooler has put another session below
    "28": Blame.moment,  # login
    "3D": Blame.moment,  # no such database
    "3F": Blame.moment,  # no such schema
    "40": Blame.moment,  # deadlocks, serialization
    "42": Blame.moment,  # tables, columns or rights that have changed
    "42P05": Blame.connection,  # a prepared statement that is there already: as 26
    "44": Blame.row,  # a view's check option
    "53": Blame.moment,  # disk, memory, connections
    "54": Blame.row,  # limits of the program, as an index row's size
    "55": Blame.moment,  # locks
    "57": Blame.moment,  # an operator
    "57014": Blame.batch,  # statement_timeout
    "57P01": Blame.connection,  # the server shuts down
    "57P02": Blame.connection,  # the server crashed
    "57P03": Blame.connection,  # the server starts
    "57P05": Blame.connection,  # idle_session_timeout
    "58": Blame.moment,  # the system below
    "P0": Blame.row,  # raised by a user's trigger
}

# By SQLite's primary result code.
SQLITE_CODES = {
    sqlite3.SQLITE_PERM: Blame.moment,
    sqlite3.SQLITE_BUSY: Blame.moment,
    sqlite3.SQLITE_LOCKED: Blame.moment,
    sqlite3.SQLITE_NOMEM: Blame.moment,
    sqlite3.SQLITE_READONLY: Blame.connection,  # also of a file that was replaced while it was open
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

# SQLSTATEs that leave no doubt: connections, login, resources, an operator, the system below. Any
# other may come of one row: of its policy, its trigger, the rows that it locks.
_FAULTS = ("08", "28", "3D", "53", "57P", "58")
# In PostgreSQL's source, the functions that raise what a user's code says: PL/pgSQL's RAISE and
# ASSERT, and those of PL/Python, PL/Perl and PL/Tcl. Their SQLSTATE may be any.
_RAISED_BY_USER = frozenset(
    ("exec_stmt_raise", "exec_stmt_assert", "PLy_elog_impl", "plperl_util_elog", "croak_cstr", "pltcl_elog")
)
# Locks, deadlocks, serialization, time: such a failure may not come again. Other runs are refused
# sooner, since many of them would fill the prefetch. Guesses.
_CONTENDED = ("40", "55P03", "57014")
TRIES, TRIES_CONTENDED = 3, 8

# By class, for what carries no code; the first that fits counts.
CLASSES: dict[type[BaseException], Blame] = {
    UnicodeEncodeError: Blame.row,
    OverflowError: Blame.row,
    Swallowed: Blame.row,
    sqlite3.DataError: Blame.row,
    sqlite3.InterfaceError: Blame.row,  # a value that can't be bound
    sqlite3.ProgrammingError: Blame.row,  # the same
    PoolTimeout: Blame.moment,
    TimeoutError: Blame.batch,  # our own, of a statement at a database that answers
    OSError: Blame.connection,
    asyncpg.TargetServerAttributeNotMatched: Blame.moment,  # none of the hosts takes writes
    asyncpg.InterfaceError: Blame.connection,
    asyncpg.InternalClientError: Blame.connection,  # asyncpg's states, when a connection ends amid them
}


def blame(error: BaseException) -> Blame:
    """What an error says, whatever SQLAlchemy has made of it."""
    error = driver_error(error)
    if state := getattr(error, "sqlstate", None):
        beginnings = (state[:length] for length in range(len(state), 1, -1))
        said = next((SQLSTATES[each] for each in beginnings if each in SQLSTATES), Blame.unforeseen)
        return Blame.unforeseen if said is not Blame.row and _is_raised(error) else said
    if code := getattr(error, "sqlite_errorcode", None):
        return SQLITE_CODES.get(code & 0xFF, Blame.unforeseen)
    return next((said for kind, said in CLASSES.items() if isinstance(error, kind)), Blame.unforeseen)


def is_fault(error: BaseException) -> bool:
    """Whether an error leaves no doubt that the database is away or busy, or writes nothing.

    Of others it is known once the database was seen to write, or not to write, another row.
    """
    if isinstance(error, Fault):
        return True
    error = driver_error(error)
    if state := getattr(error, "sqlstate", None):
        return state.startswith(_FAULTS) and not _is_raised_by_user(error)
    return blame(error) in (Blame.connection, Blame.moment)


def is_of_row(error: BaseException) -> bool:
    """Whether an error comes of what a user's code, or a policy, says of a row."""
    error = driver_error(error)
    by_policy = getattr(error, "server_source_function", None) == "ExecWithCheckOptions"
    return by_policy or _is_raised_by_user(error)


def _is_raised_by_user(error: BaseException) -> bool:
    # An error's context is not empty where it was raised within a function.
    return bool(getattr(error, "context", None)) or _is_raised(error)


def _is_raised(error: BaseException) -> bool:
    return getattr(error, "server_source_function", None) in _RAISED_BY_USER


def is_gone(error: BaseException) -> bool:
    """Whether a row refers to another that is not there."""
    error = driver_error(error)
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, asyncpg.ForeignKeyViolationError) or code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY


def tries(error: BaseException) -> int:
    """How often a run is tried over which the database fails while it writes others."""
    error = driver_error(error)
    state = getattr(error, "sqlstate", None) or ""
    contended = state.startswith(_CONTENDED) and not _is_raised_by_user(error)
    contended = contended or isinstance(error, TimeoutError)
    return TRIES_CONTENDED if contended else TRIES


def refusal(error: BaseException) -> Refusal:
    """The answer to the request whose row the database does not take."""
    error = driver_error(error)
    if isinstance(error, Swallowed):
        return IntegrityConflict("The database does not keep this run: a trigger takes its row away.")
    if isinstance(error, (asyncpg.IntegrityConstraintViolationError, sqlite3.IntegrityError)):
        return IntegrityConflict(str(error))
    advice = f". {mended(str(error))}" if isinstance(error, asyncpg.InsufficientPrivilegeError) else ""
    return Unprocessable(f"The database cannot store this run: {error}{advice}")


def fault(error: BaseException) -> Fault:
    """What is waited out, in one line."""
    if isinstance(error, Fault):
        return error
    error = driver_error(error)
    which = "SQLite" if isinstance(error, sqlite3.Error) else "PostgreSQL"
    made = Fault(f"{which}: {first_line(error)}")
    made.ended = blame(error) is Blame.connection
    return made


def driver_error(error: BaseException) -> BaseException:
    """The driver's own error beneath what SQLAlchemy makes of it."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return error
    return error.orig.__cause__ or error.orig


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]


@contextmanager
def opening(url: URL) -> Iterator[None]:
    """Turn what goes wrong while connecting into a StoreError or, if it may pass, a Fault."""
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
            advice = "Name who signed the server's certificate: sslrootcert=FILE, or sslrootcert=system."
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
