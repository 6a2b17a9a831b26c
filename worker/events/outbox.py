"""The outbox: the events of stored runs, in a queue from which the emitter takes them; knows
neither Prefect's API nor SQL.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

import structlog

from worker.broker.connection import ChannelLost
from worker.broker.publication import Publication, events_message
from worker.broker.publisher import Confirmation, Fate
from worker.broker.session import Session
from worker.broker.topology import TopologyMismatch
from worker.contract.encoding import dumps
from worker.contract.errors import Fault
from worker.contract.flow_run import FlowRun, FlowRunState
from worker.contract.immutable import immutable
from worker.contract.related import References, RelatedRows
from worker.events.event import MAX_EVENT_BYTES, RECEIVED_BYTES, Beginning, event, lightened, references
from worker.observability import metrics
from worker.tasks.backoff import Backoff
from worker.tasks.budget import Budget
from worker.tasks.isolate import Failed, isolate
from worker.tasks.mailbox import Mailbox

log = structlog.get_logger(__name__)

# Of one message, and so of one request to the API: its persister takes 20 events at a time, and
# its memory broker holds 10,000 a subscription.
CHUNK_MAX = 200
CHUNK_BYTES = 512 * 1024
# Events that the broker has not confirmed take so many bytes of memory at the most; what comes
# after them waits as runs.
UNCONFIRMED_BYTES = 8 * 1024 * 1024
# A run that is found by a request that was never delivered before has its event from the request
# that made it, which is acknowledged only after it. Where that one was lost with its queue, its
# producer asks again soon. Prefect's automations pass over an event that they saw in the last
# fifteen minutes (``PRECEDING_EVENT_LOOKBACK``), so that doubles of this age do no harm.
YOUNG = timedelta(minutes=10)
# How often the rows of a run are looked up again after an error that may be the run's. A guess.
LOOK_UP_TRIES = 3


class Lookup(Protocol):
    """What the database is asked."""

    async def related(self, wanted: References) -> RelatedRows:
        """The rows that runs refer to; raises Fault."""

    async def first_states(self, run_ids: Iterable[UUID]) -> dict[UUID, FlowRunState]:
        """The states that runs began with, by the runs' ids; raises Fault."""


@immutable
class Found:
    """A run that stood there when it was asked for.

    Attributes:
        redelivered: whether the request that asked was delivered before, and so may have made it.
    """

    run: FlowRun
    redelivered: bool

    def needs_event(self, now: datetime) -> bool:
        """Whether its event may be missing."""
        return self.run.state_id is not None and (self.redelivered or now - self.run.created < YOUNG)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Waits for as long as the database or the outbox does, beside its deliveries: it is small."""

    runs: Sequence[Beginning | FlowRun]
    recorded: "asyncio.Future[None]"


class Outbox:
    """Writes the events of stored runs into the outbox queue.

    Args:
        session: where the queue is.
        lookup: where the runs are.
        tasks: what waits for confirms runs in here, so that its end is everything's end.
    """

    def __init__(self, session: Session, lookup: Lookup, tasks: asyncio.TaskGroup) -> None:
        self._session = session
        self._lookup = lookup
        self._tasks = tasks
        self._queue = session.topology.events_queue
        self._batches: Mailbox[_Batch] = Mailbox()
        self._unconfirmed = Budget(UNCONFIRMED_BYTES)
        self._login: str | None = None

    def record(self, new: Iterable[FlowRun], found: Iterable[Found]) -> "asyncio.Future[None] | None":
        """Have the events of runs recorded; waits for nothing.

        Returns:
            Done once the broker has confirmed all of them; None if there are none.
        """
        runs: dict[UUID, Beginning | FlowRun] = {}
        now = datetime.now(UTC)
        for each in found:
            with _edge(each.run):
                if each.needs_event(now):
                    runs[each.run.id] = lightened(each.run)
        for run in new:
            with _edge(run):
                if (beginning := Beginning.of_new(run)) is not None:
                    runs[run.id] = beginning
        if not runs:
            return None
        recorded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._batches.put(_Batch(list(runs.values()), recorded))
        return recorded

    def close(self) -> None:
        """Say that nothing more comes: :meth:`run` then ends with the last batch."""
        self._batches.close()

    async def run(self) -> None:
        """Record what is given, until :meth:`close`.

        Raises:
            ChannelLost: the session ended; the requests of what was not recorded come again.
        """
        self._login = await self._session.login()
        while batches := await self._batches.take(1):
            (batch,) = batches
            publications = await self._publications(batch)
            size = sum(each.size for each in publications)
            await self._unconfirmed.room(size)
            self._unconfirmed.change(size)
            confirmation = await self._session.publisher.publish(publications)
            self._tasks.create_task(self._confirmed(confirmation, batch.recorded, size))

    async def _publications(self, batch: _Batch) -> list[Publication]:
        """A batch's events as messages.

        A run whose rows can't be looked up, while others' can, is left out after a few tries: it is
        there, and its request must not wait for ever.
        """
        backoff = Backoff()
        left, events = batch.runs, list[bytes]()
        while True:
            results = await isolate(left, self._events, stop=Fault)
            events += [each for each in results if isinstance(each, bytes)]
            failed = [
                (run, each.error) for run, each in zip(left, results, strict=True) if isinstance(each, Failed)
            ]
            for run, error in failed:
                if not isinstance(error, Fault):
                    log.error("event_not_made", flow_run_id=str(run.id), exc_info=error)
            if backoff.tries >= LOOK_UP_TRIES:
                left_out = [error for _, error in failed if not isinstance(error, Fault)]
                metrics.events_left_out(len(left_out))
                failed = [(run, error) for run, error in failed if isinstance(error, Fault)]
            if not failed:
                return [each async for each in self._messages(events)]
            left = [run for run, _ in failed]
            reason = str(failed[-1][1])
            log.warning("events_wait_for_database", error=reason, tries=backoff.tries + 1, runs=len(left))
            await backoff.sleep()

    async def _events(self, runs: Sequence[Beginning | FlowRun]) -> Sequence[bytes | None]:
        """The event of each run as JSON; None where there is none, or Prefect would drop it."""
        found = [run for run in runs if isinstance(run, FlowRun)]
        first = await self._lookup.first_states(run.id for run in found) if found else {}
        began = [_beginning(run, first) for run in runs]
        rows = await self._lookup.related(references(filter(None, began)))
        return [None if run is None else _written(run, rows) for run in began]

    async def _messages(self, events: Iterable[bytes]) -> AsyncIterator[Publication]:
        """The events in messages, each a JSON list that the broker takes."""
        takes = self._session.size_limit.takes
        most = CHUNK_BYTES if await takes(CHUNK_BYTES) else self._session.size_limit.max_size
        chunk: list[bytes] = []
        size = 0
        for written in events:
            if len(written) > most - 2 and not await takes(len(written) + 2):
                log.warning("event_left_out", bytes=len(written), reason="the broker does not take it")
                metrics.events_left_out(1)
                continue
            if chunk and (len(chunk) == CHUNK_MAX or size + len(written) + len("[]") > most):
                yield events_message(self._queue, chunk, self._login)
                chunk, size = [], 0
            chunk.append(written)
            size += len(written) + len(",")
        if chunk:
            yield events_message(self._queue, chunk, self._login)

    async def _confirmed(
        self, confirmation: Confirmation, recorded: "asyncio.Future[None]", size: int
    ) -> None:
        """Wait until the broker has taken all of it; publish again what it does not take, for as
        long as it doesn't.
        """
        await confirmation.done
        backoff = Backoff()
        while not confirmation.flawless:
            left = [
                each
                for each, fate in zip(confirmation.publications, confirmation.fates, strict=True)
                if fate is not Fate.CONFIRMED
            ]
            log.warning("events_not_taken", queue=self._queue, messages=len(left), tries=backoff.tries + 1)
            await backoff.sleep()
            confirmation = await self._publish_apart(left) or confirmation
        self._unconfirmed.change(-size)
        recorded.set_result(None)

    async def _publish_apart(self, left: Sequence[Publication]) -> Confirmation | None:
        """Publish on a new channel, as the settlement does; None if that one was closed over it."""
        try:
            await self._session.redeclare()
        except TopologyMismatch as error:
            log.error("events_queue_missing", error=str(error))
        try:
            async with self._session.another_publisher() as publisher:
                confirmation = await publisher.publish(left)
                await confirmation.done
                return confirmation
        except ChannelLost as lost:
            self._session.raise_if_lost(lost)
            return None


@contextmanager
def _edge(run: FlowRun) -> Iterator[None]:
    """A run that breaks us harms no other: its event is left out."""
    try:
        yield
    except Exception:
        log.exception("event_not_made", flow_run_id=str(run.id))
        metrics.events_left_out(1)


def _beginning(run: Beginning | FlowRun, first: Mapping[UUID, FlowRunState]) -> Beginning | None:
    if isinstance(run, Beginning):
        return run
    return Beginning.of_found(run, first[run.id]) if run.id in first else None


def _written(run: Beginning, rows: RelatedRows) -> bytes | None:
    """An event as JSON; None if there can be none, or Prefect would drop it."""
    written = dumps(event(run, rows))
    if len(written) + RECEIVED_BYTES <= MAX_EVENT_BYTES:
        return written
    log.warning("event_left_out", flow_run_id=str(run.id), bytes=len(written))
    metrics.events_left_out(1)
    return None
