"""The meaning of each database error: one line of the table, one test."""

import sqlite3

import asyncpg
import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from worker.contract.errors import Fault, IntegrityConflict, Unprocessable
from worker.store.errors import (
    CLASSES,
    SQLITE_CODES,
    SQLSTATES,
    TRIES,
    TRIES_CONTENDED,
    Blame,
    StoreError,
    Swallowed,
    blame,
    fault,
    is_fault,
    is_of_row,
    opening,
    refusal,
    tries,
)

URL = make_url("postgresql+asyncpg://user:secret@host/db")


def postgresql_error(state: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new({"C": state, "M": "what was wrong", "D": "and where"})


def sqlite_error(code: int, kind: type[sqlite3.Error] = sqlite3.OperationalError) -> sqlite3.Error:
    error = kind("what was wrong")
    error.sqlite_errorcode = code
    return error


def wrapped(error: Exception) -> DBAPIError:
    """As SQLAlchemy raises it: its own error, caused by the adapter's, caused by the driver's."""
    adapted = Exception("adapted")
    adapted.__cause__ = error
    return OperationalError("SELECT 1", None, adapted)


# One code of each PostgreSQL error class.
STATES = {
    "08003": Blame.connection,
    "08006": Blame.connection,
    "08P01": Blame.connection,
    "0A000": Blame.connection,
    "22001": Blame.row,
    "22021": Blame.row,
    "22P05": Blame.row,
    "23502": Blame.row,
    "23503": Blame.row,
    "23505": Blame.row,
    "23514": Blame.row,
    "25001": Blame.moment,
    "25P02": Blame.moment,
    "25006": Blame.connection,
    "26000": Blame.connection,
    "28P01": Blame.moment,
    "3D000": Blame.moment,
    "3F000": Blame.moment,
    "40001": Blame.moment,
    "40P01": Blame.moment,
    "42501": Blame.moment,
    "42703": Blame.moment,
    "42P01": Blame.moment,
    "42P05": Blame.connection,
    "44000": Blame.row,
    "53100": Blame.moment,
    "53300": Blame.moment,
    "54000": Blame.row,
    "55P03": Blame.moment,
    "57014": Blame.batch,
    "57000": Blame.moment,
    "57P01": Blame.connection,
    "57P02": Blame.connection,
    "57P03": Blame.connection,
    "57P04": Blame.moment,
    "57P05": Blame.connection,
    "58030": Blame.moment,
    "P0001": Blame.row,
    "P0002": Blame.row,
    "38000": Blame.unforeseen,
    "F0000": Blame.unforeseen,
    "XX000": Blame.unforeseen,
    "ZZ999": Blame.unforeseen,
}


@pytest.mark.parametrize(("state", "said"), STATES.items())
def test_an_sqlstate_says(state: str, said: Blame) -> None:
    assert blame(postgresql_error(state)) is said
    assert blame(wrapped(postgresql_error(state))) is said


def test_each_line_of_the_sqlstates_is_tested() -> None:
    tested = {
        max((line for line in SQLSTATES if state.startswith(line)), key=len, default="") for state in STATES
    }
    assert tested - {""} == SQLSTATES.keys()


def raised_by_user(state: str, **fields: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new({"C": state, "M": "what was wrong", "R": "exec_stmt_raise", **fields})


FAULTS = {
    *("08003", "08006", "08P01", "28P01", "3D000", "53100", "53300", "58030"),
    *("57P01", "57P02", "57P03", "57P04", "57P05"),
}


@pytest.mark.parametrize("state", STATES)
def test_an_sqlstate_is_a_fault_of_the_database_if_it_leaves_no_doubt(state: str) -> None:
    assert is_fault(postgresql_error(state)) is (
        state in FAULTS or state in ("57P02", "57P04", "57P05", "08003")
    )
    # It is no fault if a user's code raises it.
    assert not is_fault(raised_by_user(state))
    assert not is_fault(asyncpg.PostgresError.new({"C": state, "M": "no", "W": "PL/pgSQL function look()"}))
    assert not is_fault(wrapped(raised_by_user(state)))
    # It drops no connection, and splits no statement.
    assert blame(raised_by_user(state)) in (Blame.row, Blame.unforeseen)


def test_a_connection_that_breaks_is_a_fault_and_what_nobody_foresaw_is_none() -> None:
    for error in (ConnectionResetError(), asyncpg.InterfaceError("closed"), PoolTimeout(), Fault("away")):
        assert is_fault(error)
    for error in (ValueError("whatever"), TimeoutError(), OverflowError(), Swallowed()):
        assert not is_fault(error)
    assert is_fault(sqlite_error(sqlite3.SQLITE_FULL))
    assert not is_fault(sqlite_error(sqlite3.SQLITE_CONSTRAINT_TRIGGER))
    assert not is_fault(sqlite_error(sqlite3.SQLITE_ERROR))


@pytest.mark.parametrize(
    ("state", "contended"), [("40001", True), ("55P03", True), ("57014", True), ("42501", False)]
)
def test_what_may_pass_by_itself_is_tried_more_often(state: str, contended: bool) -> None:
    assert tries(postgresql_error(state)) == (TRIES_CONTENDED if contended else TRIES)
    assert tries(raised_by_user(state)) == TRIES


def test_a_policys_word_is_of_a_row() -> None:
    policy = {"C": "42501", "M": "new row violates row-level security policy", "R": "ExecWithCheckOptions"}
    assert is_of_row(asyncpg.PostgresError.new(policy))
    assert is_of_row(raised_by_user("42501"))
    assert not is_of_row(asyncpg.PostgresError.new({"C": "42501", "M": "denied", "R": "aclcheck_error"}))


CODES = {
    sqlite3.SQLITE_PERM: Blame.moment,
    sqlite3.SQLITE_BUSY: Blame.moment,
    sqlite3.SQLITE_BUSY_SNAPSHOT: Blame.moment,
    sqlite3.SQLITE_LOCKED: Blame.moment,
    sqlite3.SQLITE_NOMEM: Blame.moment,
    sqlite3.SQLITE_READONLY: Blame.connection,
    sqlite3.SQLITE_READONLY_DBMOVED: Blame.connection,
    sqlite3.SQLITE_INTERRUPT: Blame.moment,
    sqlite3.SQLITE_IOERR_WRITE: Blame.connection,
    sqlite3.SQLITE_CORRUPT: Blame.connection,
    sqlite3.SQLITE_FULL: Blame.moment,
    sqlite3.SQLITE_CANTOPEN: Blame.connection,
    sqlite3.SQLITE_PROTOCOL: Blame.moment,
    sqlite3.SQLITE_SCHEMA: Blame.moment,
    sqlite3.SQLITE_TOOBIG: Blame.row,
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: Blame.row,
    sqlite3.SQLITE_CONSTRAINT_NOTNULL: Blame.row,
    sqlite3.SQLITE_MISMATCH: Blame.row,
    sqlite3.SQLITE_AUTH: Blame.moment,
    sqlite3.SQLITE_NOTADB: Blame.connection,
    sqlite3.SQLITE_ERROR: Blame.unforeseen,
    sqlite3.SQLITE_INTERNAL: Blame.unforeseen,
}


@pytest.mark.parametrize(("code", "said"), CODES.items())
def test_a_code_of_sqlite_says(code: int, said: Blame) -> None:
    assert blame(sqlite_error(code)) is said


def test_each_line_of_the_codes_of_sqlite_is_tested() -> None:
    assert {code & 0xFF for code in CODES} >= SQLITE_CODES.keys()


UNCODED = {
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"): Blame.row,
    OverflowError("Python int too large to convert to SQLite INTEGER"): Blame.row,
    Swallowed(): Blame.row,
    sqlite3.DataError("string longer than INT_MAX bytes"): Blame.row,
    sqlite3.InterfaceError("Error binding parameter 0"): Blame.row,
    sqlite3.ProgrammingError("type 'set' is not supported"): Blame.row,
    asyncpg.DataError("invalid input for query argument $1"): Blame.row,
    PoolTimeout("QueuePool limit of size 2 overflow 0 reached"): Blame.moment,
    TimeoutError(): Blame.batch,
    ConnectionRefusedError(111, "Connect call failed"): Blame.connection,
    ConnectionResetError(104, "Connection reset by peer"): Blame.connection,
    asyncpg.TargetServerAttributeNotMatched("None of the hosts match"): Blame.moment,
    asyncpg.InterfaceError("connection is closed"): Blame.connection,
    asyncpg.InternalClientError("got result for unknown protocol state 3"): Blame.connection,
    ValueError("whatever"): Blame.unforeseen,
    KeyError("whatever"): Blame.unforeseen,
}


@pytest.mark.parametrize(("error", "said"), UNCODED.items(), ids=lambda each: type(each).__name__)
def test_an_error_without_a_code_says(error: Exception, said: Blame) -> None:
    assert blame(error) is said


def test_each_class_is_tested() -> None:
    tested = [next((kind for kind in CLASSES if isinstance(error, kind)), None) for error in UNCODED]
    assert {*tested} >= CLASSES.keys()


def test_a_row_that_refers_to_none_is_a_conflict_and_what_else_it_is_blamed_for_is_not() -> None:
    for error in (
        postgresql_error("23503"),
        wrapped(postgresql_error("23502")),
        sqlite_error(sqlite3.SQLITE_CONSTRAINT_NOTNULL, sqlite3.IntegrityError),
        sqlite_error(sqlite3.SQLITE_CONSTRAINT_TRIGGER, sqlite3.IntegrityError),
    ):
        assert isinstance(refusal(error), IntegrityConflict)
    for error in (
        postgresql_error("22003"),
        postgresql_error("P0001"),
        OverflowError("too large"),
    ):
        assert isinstance(refusal(error), Unprocessable)
        assert str(error).splitlines()[0] in refusal(error).line


def test_a_fault_is_one_line_and_says_which_database() -> None:
    assert str(fault(wrapped(postgresql_error("57P01")))) == "PostgreSQL: what was wrong"
    assert str(fault(sqlite_error(sqlite3.SQLITE_BUSY))) == "SQLite: what was wrong"
    assert str(fault(TimeoutError())) == "PostgreSQL: TimeoutError"
    assert fault(already := Fault("it has fallen silent")) is already


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (postgresql_error("28P01"), "Check the user and the password"),
        (postgresql_error("28000"), "Check the user and the password"),
        (postgresql_error("3D000"), "CREATE DATABASE db"),
        (postgresql_error("42501"), "Grant it"),
        (postgresql_error("42704"), "behind the '?'"),
        (asyncpg.ClientConfigurationError("sslmode"), "behind the '?'"),
        (ValueError("could not convert string to float"), "behind the '?'"),
        (
            asyncpg.ProtocolViolationError("unsupported startup parameter: no_such_setting"),
            "behind the '?'",
        ),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN), "Does the folder exist"),
    ],
)
def test_what_is_wrong_at_the_opening_is_told_with_advice(error: Exception, advice: str) -> None:
    with pytest.raises(StoreError, match=advice.replace("?", r"\?")) as told, opening(URL):
        raise wrapped(error)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    "error",
    [
        postgresql_error("57P03"),
        postgresql_error("53300"),
        postgresql_error("XX000"),
        sqlite_error(sqlite3.SQLITE_BUSY),
        ConnectionRefusedError(111, "Connect call failed"),
        TimeoutError(),
    ],
    ids=repr,
)
def test_what_may_pass_is_a_fault_at_the_opening(error: Exception) -> None:
    with pytest.raises(Fault), opening(URL):
        raise error


def test_what_is_neither_passes_through_the_opening() -> None:
    with pytest.raises(KeyError), opening(URL):
        raise KeyError("a bug")
