"""The store: opens a database of either kind, and creates a batch of runs in it, each once; knows no broker."""

import sqlite3
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Literal
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from worker.contract.errors import Fault, Refusal
from worker.contract.flow_run import FlowRun
from worker.creation import NewRun
from worker.store.outcome import Created, Existing, Outcome
from worker.store.postgresql import FAULTS, PostgreSQL, first_line
from worker.store.prefect import References, resolve
from worker.store.sqlite import SQLite

# A run that is deleted between the conflict with it and the look at it: the batch tries again, this often.
MAX_ROUNDS = 10

Key = tuple[UUID, str]


class StoreError(Exception):
    """The database is not as it has to be (URL, login, name, schema); waiting won't mend it. Its message says what to do."""


class Store:
    """Creates runs, each once per flow and idempotency key, across any number of workers.

    Its methods may be called from several tasks. Open it with :meth:`open`.

    Attributes:
        kind: a database of our own, or a Prefect server's.
        dialect: which database.
        description: where it is, without a password.
    """

    def __init__(self, database: PostgreSQL | SQLite, url: URL, *, prefect: bool) -> None:
        self._database = database
        self.kind: Literal["standalone", "prefect"] = "prefect" if prefect else "standalone"
        self.dialect: Literal["postgresql", "sqlite"] = "postgresql" if isinstance(database, PostgreSQL) else "sqlite"
        self.description = url.render_as_string(hide_password=True)

    @classmethod
    async def open(cls, url: str, *, migrate: bool) -> "Store":
        """Connect, and see to it that the schema is there.

        Args:
            url: ``sqlite+aiosqlite:///FILE`` or ``postgresql+asyncpg://…``.
            migrate: bring a PostgreSQL schema up to date first. SQLite's always is.

        Raises:
            StoreError: the URL, the login, the name or the schema is wrong.
            Fault: the database cannot be reached now.
        """
        parsed = parse_url(url)
        from worker.store import migrations

        with_schema = migrate or parsed.get_backend_name() == "sqlite"
        prefect = await migrations.ensure(parsed, upgrade=with_schema)
        database: PostgreSQL | SQLite
        with opening(parsed):
            if parsed.get_backend_name() == "sqlite":
                database = await SQLite.connect(parsed, prefect=prefect)
            else:
                database = await PostgreSQL.connect(parsed, prefect=prefect)
        return cls(database, parsed, prefect=prefect)

    async def close(self) -> None:
        """Close the connections."""
        await self._database.close()

    async def ping(self) -> None:
        """Raise Fault unless the database answers."""
        await self._database.ping()

    async def try_writing(self, new: NewRun) -> None:
        """Raise Fault unless the database would take a run like this one, which is not stored."""
        run, state = new.run, new.run.state
        state_id = None if state is None else uuid4()
        # With ids of its own, and no key: where a run conflicts with one that exists, nothing is written.
        trial = replace(run, id=uuid4(), idempotency_key=None, state_id=state_id)
        if state is not None and state_id is not None:
            trial.state = replace(state, id=state_id, flow_run_id=trial.id)
        await self._database.try_writing(trial)

    async def create(self, runs: Sequence[NewRun]) -> list[Outcome]:
        """Create runs that don't exist yet.

        Of several runs with one key the first is created; if it is refused, the next one.

        Returns:
            What became of each, in the order of ``runs``.

        Raises:
            Fault: the database is away or busy. The same runs can be given again: what was stored is found then.
        """
        outcomes: dict[int, Outcome] = {}
        waiting: dict[Hashable, list[int]] = {}
        for index, new in enumerate(runs):
            waiting.setdefault(_identity(new.run), []).append(index)
        for _ in range(MAX_ROUNDS):
            if not waiting:
                break
            # One order of keys in all workers, so that no two of them wait for each other's rows.
            leading = sorted((members[0] for members in waiting.values()), key=lambda index: _order(runs[index].run))
            found = await self._insert_or_read([runs[index] for index in leading])
            for index in leading:
                run = runs[index].run
                outcome = found.get(run.id)
                members = waiting[_identity(run)]
                if outcome is None:
                    continue
                outcomes[index] = outcome
                followers = members[1:]
                if isinstance(outcome, Refusal) and followers:
                    waiting[_identity(run)] = followers
                    continue
                if not isinstance(outcome, Refusal):
                    outcomes.update((follower, Existing(outcome.run)) for follower in followers)
                del waiting[_identity(run)]
        else:
            raise Fault("runs vanish as soon as they are created")
        return [outcomes[index] for index in range(len(runs))]

    async def _insert_or_read(self, runs: Sequence[NewRun]) -> dict[UUID, Outcome]:
        """What became of runs with different keys, by their ids; those that exist no longer are left out."""
        references = await resolve(self._database, runs) if self.kind == "prefect" else References()
        outcomes: dict[UUID, Outcome] = dict(references.refused)
        unresolved = references.missing.keys() | references.refused.keys()
        for run_id, stored in (await self._database.insert([new for new in runs if new.run.id not in unresolved])).items():
            outcomes[run_id] = stored if isinstance(stored, Refusal) else Created(stored)
        conflicting = [new.run for new in runs if new.run.id not in outcomes]
        keyed = {_key(run): run for run in conflicting if run.idempotency_key is not None}
        for existing in await self._database.read_by_key(list(keyed)):
            outcomes[keyed[_key(existing)].id] = Existing(existing)
        unkeyed = [run.id for run in conflicting if run.idempotency_key is None]
        for existing in await self._database.read_by_id(unkeyed):
            outcomes[existing.id] = Existing(existing)
        return {**references.missing, **outcomes}


def _key(run: FlowRun) -> Key:
    return run.flow_id, run.idempotency_key or ""


def _identity(run: FlowRun) -> Hashable:
    """What makes two requests ask for the same run: flow and key, or else the id (a message's fingerprint)."""
    return run.id if run.idempotency_key is None else _key(run)


def _order(run: FlowRun) -> tuple[int, str, int]:
    return run.flow_id.int, run.idempotency_key or "", run.id.int


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
            raise StoreError("WORKER_DATABASE_URL names no file: each connection would have a SQLite database of its own.")
        return parsed.set(drivername="sqlite+aiosqlite")
    raise StoreError(f"WORKER_DATABASE_URL names '{backend}': PostgreSQL and SQLite are supported.")


class opening:
    """A context that turns what goes wrong while connecting into a StoreError or, if it may pass, a Fault."""

    def __init__(self, url: URL) -> None:
        self._where = url.render_as_string(hide_password=True)
        self._name = url.database

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        error = _drivers(error)
        if isinstance(error, sqlite3.Error):
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Fault(f"{self._where}: {error}") from error
            raise StoreError(f"{self._where}: {error}. Does the folder exist, and may the worker write there?") from error
        if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
            raise StoreError(f"{self._where}: {first_line(error)}. Check the user and the password.") from error
        if isinstance(error, asyncpg.InvalidCatalogNameError):
            raise StoreError(f"{self._where}: {first_line(error)}. Create it: CREATE DATABASE {self._name};") from error
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            raise StoreError(f"{self._where}: {first_line(error)}. Grant it to the worker's user.") from error
        if isinstance(error, (asyncpg.exceptions.ClientConfigurationError, asyncpg.UndefinedObjectError)):
            raise StoreError(f"{self._where}: {first_line(error)}. Check what stands behind the '?' of the URL.") from error
        if isinstance(error, FAULTS):
            raise Fault(f"{self._where}: {first_line(error)}") from error


def _drivers(error: BaseException | None) -> BaseException | None:
    """The driver's own error beneath those that SQLAlchemy and its adapter make of it."""
    cause: BaseException | None = error if isinstance(error, DBAPIError) else None
    while isinstance(cause, Exception) and not isinstance(cause, (sqlite3.Error, *FAULTS)):
        cause = cause.__cause__
    return cause or error
