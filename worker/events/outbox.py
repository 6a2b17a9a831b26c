"""The outbox: the events of stored runs, in a queue that the emitter consumes. Knows neither
Prefect's API nor SQL.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

import structlog

from worker.amqp.publication import Confirm, Publication
from worker.broker.connection import ChannelLost
from worker.broker.messages import events_message
from worker.broker.publisher import Confirmation
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

# Most events and bytes of a message, and so of a request to the API: its persister takes 20 events
# at a time, and its memory broker holds 10,000 a subscription.
CHUNK_MAX = 200
CHUNK_BYTES = 512 * 1024
# Most bytes of unconfirmed events in memory. Further runs wait before their events are made.
UNCONFIRMED_BYTES = 8 * 1024 * 1024
# An existing run younger than this gets its event again. Usually the request that made it sent the
# event before its acknowledgement. If that request was lost with its queue, its producer asks again
# soon. A duplicate does no harm: Prefect's automations ignore an event that they saw in the last
# fifteen minutes (``PRECEDING_EVENT_LOOKBACK``).
YOUNG = timedelta(minutes=10)
# Retries of the look-up of a run's rows after an error that the run may cause. A guess.
LOOK_UP_TRIES = 3


class Lookup(Protocol):
    """Queries to the database."""

    async def related(self, wanted: References) -> RelatedRows:
        """The rows that runs refer to. Raises Fault."""

    async def first_states(self, run_ids: Iterable[UUID]) -> dict[UUID, FlowRunState]:
        """The first states of runs, by the runs' ids. Raises Fault."""


@immutable
class Found:
    """A run that existed before the request.

    Attributes:
        redelivered: whether the request was delivered before, and so may have made the run.
    """

    run: FlowRun
    redelivered: bool

    def needs_event(self, now: datetime) -> bool:
        """Whether the run's event may be missing."""
        return self.run.state_id is not None and (self.redelivered or now - self.run.created < YOUNG)


@dataclass(frozen=True, slots=True)
class _Batch:
    """The runs of one batch. It may wait long for the database or the broker, so it is small."""

    runs: Sequence[Beginning | FlowRun]
    recorded: "asyncio.Future[None]"


class Outbox:
    """Writes the events of stored runs into the outbox queue.

    Args:
        session: the broker's session.
        lookup: queries the database.
        tasks: runs the waits for confirms, so that a failed one ends the session.
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
        """Queue the events of runs. Waits for nothing.

        Returns:
            A future that is done once the broker has confirmed all events. None if there are none.
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
        """End the input: :meth:`run` ends after the last batch."""
        self._batches.close()

    async def run(self) -> None:
        """Publish the events of all batches, until :meth:`close`.

        Raises:
            ChannelLost: the session ended. Requests without confirmed events are redelivered.
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

        If only one run's rows can't be looked up, it gets no event after a few tries: the run
        exists, and its request must not wait for ever.
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
                metrics.events("left_out", len(left_out))
                failed = [(run, error) for run, error in failed if isinstance(error, Fault)]
            if not failed:
                return [each async for each in self._messages(events)]
            left = [run for run, _ in failed]
            reason = str(failed[-1][1])
            log.warning("events_wait_for_database", error=reason, tries=backoff.tries + 1, runs=len(left))
            await backoff.sleep()

    async def _events(self, runs: Sequence[Beginning | FlowRun]) -> Sequence[bytes | None]:
        """The event of each run as JSON. None if it has none, or Prefect would drop it."""
        found = [run for run in runs if isinstance(run, FlowRun)]
        first = await self._lookup.first_states(run.id for run in found) if found else {}
        began = [_beginning(run, first) for run in runs]
        rows = await self._lookup.related(references(filter(None, began)))
        return [None if run is None else _written(run, rows) for run in began]

    async def _messages(self, events: Iterable[bytes]) -> AsyncIterator[Publication]:
        """The events in messages, each a JSON list within the broker's limit."""
        takes = self._session.size_limit.takes
        most = CHUNK_BYTES if await takes(CHUNK_BYTES) else self._session.size_limit.max_size
        chunk: list[bytes] = []
        size = 0
        for written in events:
            if len(written) > most - 2 and not await takes(len(written) + 2):
                log.warning("event_left_out", bytes=len(written), reason="the broker does not take it")
                metrics.events("left_out")
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
        """Wait until the broker has confirmed all messages. Publish refused ones again until it
        does.
        """
        await confirmation.wait()
        backoff = Backoff()
        while not confirmation.all_taken:
            left = [
                each
                for each, confirm in zip(confirmation.publications, confirmation.confirms, strict=True)
                if confirm is not Confirm.ACK
            ]
            log.warning("events_not_taken", queue=self._queue, messages=len(left), tries=backoff.tries + 1)
            await backoff.sleep()
            confirmation = await self._publish_apart(left) or confirmation
        self._unconfirmed.change(-size)
        recorded.set_result(None)

    async def _publish_apart(self, left: Sequence[Publication]) -> Confirmation | None:
        """Publish on a new channel, like the settlement. None if the broker closed that channel."""
        try:
            await self._session.redeclare()
        except TopologyMismatch as error:
            log.error("events_queue_missing", error=str(error))
        try:
            async with self._session.another_publisher() as publisher:
                confirmation = await publisher.publish(left)
                await confirmation.wait()
                return confirmation
        except ChannelLost as lost:
            self._session.raise_if_lost(lost)
            return None


@contextmanager
def _edge(run: FlowRun) -> Iterator[None]:
    """Leave out the event of a run that raises an error: it harms no other."""
    try:
        yield
    except Exception:
        log.exception("event_not_made", flow_run_id=str(run.id))
        metrics.events("left_out")


def _beginning(run: Beginning | FlowRun, first: Mapping[UUID, FlowRunState]) -> Beginning | None:
    if isinstance(run, Beginning):
        return run
    return Beginning.of_found(run, first[run.id]) if run.id in first else None


def _written(run: Beginning, rows: RelatedRows) -> bytes | None:
    """An event as JSON. None if the run has none, or Prefect would drop it."""
    written = dumps(event(run, rows))
    if len(written) + RECEIVED_BYTES <= MAX_EVENT_BYTES:
        return written
    log.warning("event_left_out", flow_run_id=str(run.id), bytes=len(written))
    metrics.events("left_out")
    return None
