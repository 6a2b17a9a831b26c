"""The store: opens a database of either kind, and creates batches of runs in it, each run once.
Knows no broker.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
import structlog

from worker.checks.checks import Checks
from worker.contract.allowed import Allowed
from worker.contract.errors import (
    DeploymentMissing,
    DeploymentNotFound,
    Fault,
    FlowRunNotFound,
    Refusal,
    Unprocessable,
)
from worker.contract.flow_run import FlowRun, odd_columns
from worker.observability.redaction import redact
from worker.runs.creation import NewRun, ReadRun, Requested, UnresolvedRun
from worker.store import migrations
from worker.store.deployments import resolve_deployments, warn_of_unserved
from worker.store.engine import Database, open_database, parse_url, prepare_to_write
from worker.store.errors import Blame, blame, first_line, is_fault
from worker.store.insertion import Insertion, undecided
from worker.store.outcome import Existing, Outcome, Read, Undecided
from worker.store.prefect import Refusals, check_standalone, complete_runs
from worker.store.reading import Reader, Unreadable, in_turns
from worker.tasks.isolate import Failed, isolate
from worker.tasks.pace import Pace
from worker.tasks.turns import Turns

log = structlog.get_logger(__name__)

# An existing run may be deleted after a new run's conflict with it, before it is read. So the new
# run is tried this often at most. Then the database is asked for the obstacle.
MAX_ROUNDS = 3
# A run's flow and idempotency key, or its id alone.
Identity = tuple[Any, ...]

# Characters of existing runs that are read at a time. A request of 100 bytes may be answered with a
# run of a megabyte, which takes up to 25 times as much memory when decoded.
READ_MAX = 2 * 1024 * 1024


class Store(Reader):
    """Creates runs, each once per flow and idempotency key, across any number of workers.

    Its methods may be called from several tasks. Open it with :meth:`open`.

    Attributes:
        kind: a database of our own, or a Prefect server's.
        description: the URL without its password.
        pace: gives turns for large steps, to the line too.
    """

    def __init__(
        self, database: Database, *, prefect: bool, allowed: Allowed, lacks: Collection[str] = ()
    ) -> None:
        super().__init__(database, prefect=prefect, lacks=lacks)
        self._allowed = allowed
        self._warned: set[UUID] = set()
        self._turns = Turns()
        self.pace = Pace()
        self._insertion = Insertion(self)
        self._checks = Checks()
        self.kind: Literal["standalone", "prefect"] = "prefect" if prefect else "standalone"
        self.description = redact(database.url.render_as_string(hide_password=False))

    @classmethod
    async def open(
        cls, url: str, *, migrate: bool, kind: migrations.Kind = "any", allowed: Allowed | None = None
    ) -> "Store":
        """Connect, and check or create the schema.

        Args:
            url: ``sqlite+aiosqlite:///FILE`` or ``postgresql+asyncpg://…``.
            migrate: upgrade a PostgreSQL schema first. An SQLite schema always is upgraded.
            kind: the kind of database that is demanded.
            allowed: the names that producers may use (default: all).

        Raises:
            StoreError: the URL, the login, the name, the schema or the kind is wrong.
            Fault: the database cannot be reached now, or Prefect has not made its demanded tables
                yet.
        """
        parsed = parse_url(url)
        migrations.make_no_file(parsed, kind)
        database = await open_database(parsed)
        try:
            found = await migrations.ensure(database, upgrade=migrate or database.sqlite, kind=kind)
            await prepare_to_write(database, prefect=found.prefect)
        except BaseException:
            await database.close()
            raise
        store = cls(database, prefect=found.prefect, allowed=allowed or Allowed(), lacks=found.lacks)
        if not (found.prefect or found.revision):
            log.info("database_created", database=store.description, kind=store.kind)
        return store

    async def close(self) -> None:
        """End the running checks, and close the connections."""
        await self._checks.close()
        await self.database.close()

    async def writes(self) -> bool:
        """Try to write a row of our own, as :meth:`Insertion.writes`."""
        return await self._insertion.writes()

    async def undecided(self, error: Exception) -> Outcome:
        """The outcome of a request for which :meth:`create` fails, even alone."""
        if is_fault(error):
            return undecided(error, wrote=False)
        if blame(error) is not Blame.row:
            log.error("run_not_created", exc_info=error)
        try:
            return undecided(error, wrote=await self.writes())
        except Fault as fault:
            return undecided(fault, wrote=False)

    async def create(self, requested: Sequence[Requested]) -> list[Outcome]:
        """Create runs that don't exist yet, and then read those that are asked for.

        If several runs have one key, the first is created. If it is refused, the next one is tried.

        Returns:
            The outcomes, in the order of ``requested``.

        Raises:
            Fault: the database is away or busy. Give the same runs again: those that were stored
                are found then.
            DeploymentMissing: the deployment of plain messages is missing.
        """
        reads = [each for each in requested if isinstance(each, ReadRun)]
        try:
            if not reads:
                return await self._create(requested)
            others = [each for each in requested if not isinstance(each, ReadRun)]
            outcomes = iter(await self._create(others))
            found = await self._read_all(reads)
            return [found[each.run_id] if isinstance(each, ReadRun) else next(outcomes) for each in requested]
        finally:
            # Waiting requests are given again, so there always is another call.
            self._turns.next()

    async def _create(self, requested: Sequence[Requested]) -> list[Outcome]:
        runs = await self._of_deployments(requested)
        refusals = await self._complete([each for each in runs if isinstance(each, NewRun)])
        batch = _Batch(runs, refusals.refused)
        for _ in range(MAX_ROUNDS):
            if leaders := batch.leaders():
                batch.settle(await self._insert_or_read(leaders, refusals.missing))
        while leaders := batch.leaders():  # after a refusal, the next request of its key leads
            batch.settle({new.run.id: await self._insertion.explain(new) for new in leaders})
        outcomes = batch.outcomes()
        faults = [each for each in outcomes if isinstance(each, Undecided) and each.is_fault]
        if faults and len(faults) == len(outcomes):
            away = Fault(faults[0].reason)
            away.ended = all(each.ended for each in faults)
            raise away
        return outcomes

    async def _of_deployments(self, requested: Sequence[Requested]) -> Sequence[NewRun | Outcome]:
        """Turn requests for runs of deployments into runs or outcomes. Other requests stay."""
        unresolved = [each for each in requested if isinstance(each, UnresolvedRun)]
        if not unresolved:
            return [each for each in requested if isinstance(each, NewRun)]
        if self.kind == "standalone":
            no = "A database of the worker's own has no deployments."
            return [each if isinstance(each, NewRun) else DeploymentNotFound(no) for each in requested]
        resolved = await resolve_deployments(
            self, self._checks, unresolved, self._turns, self._allowed, self.pace
        )
        # A message without a key that made its run before is answered with it, even if its
        # deployment has changed since. A request with a key is refused then, as in Prefect.
        refused = {
            each.run_id
            for each, refusal in zip(unresolved, resolved, strict=True)
            if isinstance(refusal, Refusal) and each.request.run_id
        }
        made_before: Mapping[UUID, Outcome] = {}
        with suppress(Unreadable):
            made_before = await self._made_before(refused)
        outcomes = [made_before.get(each.run_id, run) for each, run in zip(unresolved, resolved, strict=True)]
        for each, outcome in zip(unresolved, outcomes, strict=True):
            if each.request.plain and isinstance(outcome, DeploymentNotFound):
                raise DeploymentMissing(each.request.body.deployment_name or "")
        theirs = iter(outcomes)
        return [each if isinstance(each, NewRun) else next(theirs) for each in requested]

    async def _made_before(self, run_ids: Collection[UUID]) -> Mapping[UUID, Outcome]:
        """The existing runs of these ids. Those that have no room now are undecided."""
        made: dict[UUID, Outcome] = {}
        here: list[tuple[UUID]] = []
        sizes = await self.find(self.statements.run_sizes, [(each,) for each in run_ids])
        for row, waiting in in_turns(((row, row.size) for row in sizes), READ_MAX, self._turns):
            if waiting is None:
                here.append((row.id,))
            else:
                made[row.id] = waiting
        for run in map(self.statements.run_of, await self.find(self.statements.runs, here)):
            made[run.id] = _shown(run)
        return made

    async def _complete(self, runs: Sequence[NewRun]) -> Refusals:
        if self.kind == "standalone":
            return check_standalone(runs, self._allowed)
        refusals = await complete_runs(self, runs, self._allowed)
        not_created = refusals.missing.keys() | refusals.refused.keys()
        warn_of_unserved((new for new in runs if new.run.id not in not_created), self._warned)
        return refusals

    async def _insert_or_read(
        self, runs: Sequence[NewRun], missing: Mapping[UUID, Refusal]
    ) -> dict[UUID, Outcome]:
        """Insert runs with different keys, or read those that exist. Returns outcomes by the runs'
        ids, but none for a run whose existing one was deleted meanwhile.
        """
        outcomes = await self._insertion.insert([new for new in runs if new.run.id not in missing])
        if len(outcomes) == len(runs):
            return outcomes
        conflicting = [new.run for new in runs if new.run.id not in outcomes]
        refused = {run.id: missing[run.id] for run in conflicting if run.id in missing}
        in_order = sorted(conflicting, key=lambda run: run.created)
        found = await self._existing([_identity(run) for run in in_order])
        existing = {run.id: found[_identity(run)] for run in conflicting if _identity(run) in found}
        # The worker that made them may not have waited for the standby.
        await self.wait_for_standby()
        return {**refused, **existing, **outcomes}

    async def _read_all(self, reads: Sequence[ReadRun]) -> dict[UUID, Outcome]:
        """The outcomes of reads, by their runs' ids."""
        run_ids = dict.fromkeys(each.run_id for each in reads)
        outcomes: dict[UUID, Outcome] = {}
        try:
            existing = await self._existing([(each,) for each in run_ids])
        except Fault as fault:  # other requests of the batch are decided
            return dict.fromkeys(run_ids, Undecided(str(fault), ended=fault.ended))
        for run_id in run_ids:
            found = existing.get((run_id,), FlowRunNotFound(run_id))
            outcomes[run_id] = Read(found.run) if isinstance(found, Existing) else found
        return outcomes

    async def _existing(self, wanted: Sequence[Identity]) -> dict[Identity, Outcome]:
        """Read existing runs, as outcomes. There is none for a run that does not exist.

        Args:
            wanted: those for which there is no room wait for their turns, the first ones never.
        """
        try:
            here, outcomes = await self._with_room(wanted)
            found = await isolate(here, self._read, stop=Fault)
        except Unreadable as unreadable:
            return dict.fromkeys(wanted, unreadable.refusal)
        for identity, existing in zip(here, found, strict=True):
            if isinstance(existing, Failed):
                outcomes[identity] = await self._unreadable(identity, existing.error)
            elif existing is not None:
                outcomes[identity] = _shown(existing)
        return outcomes

    async def _with_room(self, wanted: Sequence[Identity]) -> tuple[list[Identity], dict[Identity, Outcome]]:
        """Split existing runs into those that can be read now, and those that wait for their
        turns.
        """
        if len(wanted) == 1:
            return [*wanted], {}
        sizes: dict[Identity, int] = {}
        for row in await self.find(self.statements.run_sizes, wanted):
            sizes[row.id,] = sizes[row.flow_id, row.idempotency_key] = row.size
        here: list[Identity] = []
        crowded: dict[Identity, Outcome] = {}
        sized = ((each, sizes.get(each, 0)) for each in wanted)
        for identity, waiting in in_turns(sized, READ_MAX, self._turns):
            if waiting is None:
                here.append(identity)
            else:
                crowded[identity] = waiting
        return here, crowded

    async def _read(self, wanted: Sequence[Identity]) -> list[FlowRun | None]:
        """Read existing runs; None for one that does not exist."""
        found: dict[Identity, FlowRun] = {}
        for run in map(self.statements.run_of, await self.find(self.statements.runs, wanted)):
            found[run.id,] = found[_identity(run)] = run
        return [found.get(each) for each in wanted]

    async def _unreadable(self, identity: Identity, error: Exception) -> Outcome:
        """The outcome of a request whose run exists and can't be read."""
        if isinstance(error, Unreadable):
            return error.refusal
        if is_fault(error):
            return undecided(error, wrote=False)

        async def read(columns: Sequence[sa.Column[Any]]) -> Sequence[sa.Column[Any]]:
            await self.find(self.statements.run_columns(columns), [identity])
            return columns

        columns = self.statements.columns
        odd = zip(columns, await isolate(columns, read, stop=Fault), strict=True)
        wrong = [
            f"{column.table.name}.{column.name}: {first_line(result.error)}"
            for column, result in odd
            if isinstance(result, Failed)
        ]
        return _not_shown("; ".join(wrong) or first_line(error))


def _shown(run: FlowRun) -> Existing | Refusal:
    """The outcome for an existing run; a refusal if the run can't be shown."""
    odd = odd_columns(run)
    return _not_shown(f"no valid value in {', '.join(odd)}") if odd else Existing(run)


def _not_shown(reason: str) -> Refusal:
    return Unprocessable(f"The run of this request exists, and can't be shown: {reason}")


class _Batch:
    """The requests of a batch, with their outcomes. Among requests for the same run one leads. The
    others follow: they find the run that it made. If it is refused, the next one leads.
    """

    def __init__(self, runs: Sequence[NewRun | Outcome], refused: Mapping[UUID, Refusal]) -> None:
        self._outcomes: dict[int, Outcome] = {}
        self._waiting: dict[Hashable, list[tuple[int, NewRun]]] = {}
        for index, new in enumerate(runs):
            if not isinstance(new, NewRun):
                self._outcomes[index] = new
            elif new.run.id in refused:
                self._outcomes[index] = refused[new.run.id]
            else:
                self._waiting.setdefault(_identity(new.run), []).append((index, new))

    def leaders(self) -> list[NewRun]:
        """One request for each run that is not settled."""
        # All workers insert keys in the same order, so that no two wait for each other's rows.
        return sorted(
            (members[0][1] for members in self._waiting.values()),
            key=lambda new: (new.run.flow_id.int, new.run.idempotency_key or "", new.run.id.int),
        )

    def settle(self, found: Mapping[UUID, Outcome]) -> None:
        """Note the leaders' outcomes, given by the ids of their runs."""
        for identity, ((index, leader), *followers) in list(self._waiting.items()):
            outcome = found.get(leader.run.id)
            if outcome is None:
                continue
            self._outcomes[index] = outcome
            if isinstance(outcome, Refusal) and followers:
                self._waiting[identity] = followers
                continue
            if isinstance(outcome, Undecided):
                later = Undecided(outcome.reason, outcome.ready)
                self._outcomes.update((index, later) for index, _ in followers)
            elif not isinstance(outcome, Refusal):
                self._outcomes.update((index, Existing(outcome.run)) for index, _ in followers)
            del self._waiting[identity]

    def outcomes(self) -> list[Outcome]:
        """The outcomes in the order of the requests. Call it once all are settled."""
        return [self._outcomes[index] for index in range(len(self._outcomes))]


def _identity(run: FlowRun) -> Identity:
    """Equal for requests for the same run: flow and key, or the id (a message's fingerprint) if
    there is no key.
    """
    return (run.id,) if run.idempotency_key is None else (run.flow_id, run.idempotency_key)
