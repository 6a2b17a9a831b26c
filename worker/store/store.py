"""The store: opens a database of either kind, and creates a batch of runs in it, each once; knows
no broker.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Literal
from uuid import UUID, uuid4

from sqlalchemy.engine import URL

from worker.contract.errors import Fault, Refusal
from worker.contract.flow_run import FlowRun
from worker.creation import NewRun
from worker.store import migrations
from worker.store.opening import opening, parse_url
from worker.store.outcome import Created, Existing, Outcome
from worker.store.postgresql import PostgreSQL
from worker.store.prefect import References, resolve
from worker.store.sqlite import SQLite

# A run that is deleted between the conflict with it and the look at it: the batch tries again, this
# often.
MAX_ROUNDS = 10

Key = tuple[UUID, str]


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
        self.dialect: Literal["postgresql", "sqlite"] = (
            "postgresql" if isinstance(database, PostgreSQL) else "sqlite"
        )
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
        # With ids of its own, and no key: where a run conflicts with one that exists, nothing is
        # written.
        trial = replace(run, id=uuid4(), idempotency_key=None, state_id=state_id)
        if state is not None and state_id is not None:
            trial.state = replace(state, id=state_id, flow_run_id=trial.id)
        await self._database.try_writing(trial)

    async def create(self, runs: Sequence[NewRun]) -> list[Outcome]:
        """Create runs that don't exist yet.

        Of several runs with one key the first is created; if it is refused, the next one.

        Returns:
            What became of each, in the order of ``runs``.

        Raises: Fault: the database is away or busy. The same runs can be given again: what was
            stored is found then.
        """
        outcomes: dict[int, Outcome] = {}
        waiting: dict[Hashable, list[int]] = {}
        for index, new in enumerate(runs):
            waiting.setdefault(_identity(new.run), []).append(index)
        for _ in range(MAX_ROUNDS):
            if not waiting:
                break
            # One order of keys in all workers, so that no two of them wait for each other's rows.
            leading = sorted(
                (members[0] for members in waiting.values()), key=lambda index: _order(runs[index].run)
            )
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
        """What became of runs with different keys, by their ids; those that exist no longer are
        left out.
        """
        references = await resolve(self._database, runs) if self.kind == "prefect" else References()
        outcomes: dict[UUID, Outcome] = dict(references.refused)
        unresolved = references.missing.keys() | references.refused.keys()
        for run_id, stored in (
            await self._database.insert([new for new in runs if new.run.id not in unresolved])
        ).items():
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
    """What makes two requests ask for the same run: flow and key, or else the id (a message's
    fingerprint).
    """
    return run.id if run.idempotency_key is None else _key(run)


def _order(run: FlowRun) -> tuple[int, str, int]:
    return run.flow_id.int, run.idempotency_key or "", run.id.int
