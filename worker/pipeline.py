"""The line from queue to acknowledgement: delivery, decode, create, reply, acknowledge. It joins
broker and store.

Each stage is a task that takes whatever the one before it has put out. So batches form by
themselves, and while one commits, the next is decoded, the replies of the last are written, and
those of the one before it are being confirmed.
"""

import asyncio
import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic

import structlog

from worker.backoff import Backoff
from worker.broker.delivery import Delivery
from worker.broker.session import Session
from worker.contract.decode import decode
from worker.contract.errors import Fault, Refusal, ReplyToRefused, Unprocessable
from worker.contract.message import DIRECT_REPLY_TO
from worker.contract.record import encode_record
from worker.creation import NewRun, new_run
from worker.mailbox import Mailbox
from worker.observability import metrics
from worker.observability.stored import StoredLog
from worker.observability.traces import Traces
from worker.settings import Settings
from worker.settlement import Answer, Settlement
from worker.store import Created, Existing, Outcome, Store

log = structlog.get_logger(__name__)

# Decoding holds the event loop; this many at a time keep it to a few milliseconds.
DECODE_MAX = 100
# A batch of large bodies ends here: more in one statement gains nothing and costs memory at both
# ends. A guess.
BATCH_MAX_BYTES = 8 * 1024 * 1024
# A database that stays away longer than this gets its deliveries handed back, before the broker's
# consumer timeout (30 minutes by default) closes the channel over them. That costs each of them one
# delivery of the limit.
HOLD_SECONDS = 600.0
# How often a batch is tried again after an error that is neither the database's nor a row's. A
# guess.
UNFORESEEN_TRIES = 3


class DatabaseAway(Exception):
    """The database stayed away for longer than deliveries can be held.

    Attributes:
        run: one of those that could not be stored.
    """

    def __init__(self, reason: str, run: NewRun) -> None:
        super().__init__(reason)
        self.run = run


class Pipeline:
    """Serves the deliveries of one session until they end."""

    def __init__(self, session: Session, store: Store, settings: Settings, traces: Traces) -> None:
        self._session = session
        self._store = store
        self._settings = settings
        self._traces = traces
        self._requests: Mailbox[tuple[Delivery, NewRun]] = Mailbox()
        self._outcomes: Mailbox[tuple[Delivery, Outcome]] = Mailbox()
        self._stored_log = StoredLog()

    async def run(self) -> None:
        """Consume and serve until the session's deliveries end and all that were taken are
        acknowledged.

        Raises:
            ExceptionGroup: of :class:`ChannelLost` (the session ended; what was in flight comes
                again) or :class:`DatabaseAway`.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._session.consume(self._settings.prefetch))
                tasks.create_task(self._decode())
                tasks.create_task(self._create())
                tasks.create_task(self._settle(Settlement(self._session, tasks, self._traces)))
                tasks.create_task(self._session.acknowledger.run())
        finally:
            self._stored_log.close()

    async def _decode(self) -> None:
        while deliveries := await self._session.deliveries.take(DECODE_MAX):
            started = monotonic()
            for delivery in deliveries:
                try:
                    self._requests.put((delivery, self._new_run(delivery)))
                except Refusal as refusal:
                    self._refuse(delivery, refusal)
                except Exception:  # the edge: a message that breaks us harms no other
                    log.exception("decode_failed", message_id=delivery.message.message_id)
                    self._refuse(delivery, Unprocessable())
            metrics.delivered(deliveries, monotonic() - started)
            if len(deliveries) == DECODE_MAX:  # more may wait, and taking them does not
                await asyncio.sleep(0)
        self._requests.close()

    def _new_run(self, delivery: Delivery) -> NewRun:
        message = delivery.message
        traceparent = self._traces.taken(delivery)
        if message.reply_to and not self._may_reply_to(message.reply_to):
            raise ReplyToRefused(message.reply_to)
        request = decode(message, max_body_bytes=self._settings.max_body_bytes)
        return new_run(request, datetime.now(UTC), traceparent=traceparent or request.traceparent)

    def _may_reply_to(self, queue: str) -> bool:
        if queue in (self._session.topology.queue, self._session.topology.dead_letter_queue):
            return False
        pattern = self._settings.reply_to_pattern
        return (
            pattern is None or queue.startswith(DIRECT_REPLY_TO) or re.fullmatch(pattern, queue) is not None
        )

    def _refuse(self, delivery: Delivery, refusal: Refusal) -> None:
        log.warning(
            "refused",
            status=refusal.status,
            error=refusal.line,
            message_id=delivery.message.message_id,
            correlation_id=delivery.message.correlation_id,
        )
        self._outcomes.put((delivery, refusal))

    async def _create(self) -> None:
        while requests := await self._requests.take(
            self._settings.batch_max, size=lambda request: request[0].size, max_size=BATCH_MAX_BYTES
        ):
            started = monotonic()
            with self._traces.batch([delivery for delivery, _ in requests]):
                outcomes = await self._stored([run for _, run in requests])
            told = log.is_enabled_for(logging.DEBUG)
            for (delivery, _), outcome in zip(requests, outcomes, strict=True):
                if isinstance(outcome, Refusal):
                    self._refuse(delivery, outcome)
                    continue
                # Its record is written by the next stage, so that the database waits for nothing
                # but the next batch.
                self._outcomes.put((delivery, outcome))
                if told:
                    log.debug(
                        "created" if isinstance(outcome, Created) else "existing",
                        flow_run_id=str(outcome.run.id),
                        name=outcome.run.name,
                        idempotency_key=outcome.run.idempotency_key,
                        message_id=delivery.message.message_id,
                    )
            seconds = monotonic() - started
            metrics.batch(len(requests), seconds)
            created, existing, refused = (
                sum(isinstance(outcome, kind) for outcome in outcomes)
                for kind in (Created, Existing, Refusal)
            )
            log.debug(
                "batch", created=created, existing=existing, refused=refused, ms=round(seconds * 1000, 1)
            )
            self._stored_log.add(created=created, existing=existing, refused=refused, seconds=seconds)
        self._outcomes.close()

    async def _stored(self, runs: Sequence[NewRun]) -> list[Outcome]:
        """Store the runs. A fault of the database is waited out, with their deliveries held."""
        backoff = Backoff()
        since = monotonic()
        while True:
            try:
                outcomes = await self._store.create(runs)
            except (
                Exception
            ) as error:  # the edge: what no rule foresees is tried again, then each run by itself
                if isinstance(error, Fault):
                    fault = error
                else:
                    log.exception("store_failed", held=len(runs))
                    if backoff.tries >= UNFORESEEN_TRIES:
                        if len(runs) == 1:
                            return [Unprocessable()]
                        return [outcome for run in runs for outcome in await self._stored([run])]
                    fault = Fault(repr(error))
                metrics.database_away(str(fault))
                log.warning("database_away", error=str(fault), tries=backoff.tries + 1, held=len(runs))
                if monotonic() - since > HOLD_SECONDS:
                    raise DatabaseAway(str(fault), runs[0]) from fault
                await backoff.sleep()
            else:
                metrics.database_here()
                return outcomes

    async def _settle(self, settlement: Settlement) -> None:
        while outcomes := await self._outcomes.take(self._settings.batch_max):
            now = datetime.now(UTC)
            await settlement.settle([_answer(delivery, outcome, now) for delivery, outcome in outcomes])
        await settlement.finish()
        self._session.acknowledger.close()


def _answer(delivery: Delivery, outcome: Outcome, now: datetime) -> Answer:
    if isinstance(outcome, Refusal):
        return Answer.refused(delivery, outcome)
    return Answer(
        delivery,
        201 if isinstance(outcome, Created) else 200,
        encode_record(outcome.run, now),
        outcome.run.id,
    )
