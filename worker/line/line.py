"""The line from queue to acknowledgement: delivery, decode, create, reply, acknowledge. It joins
broker and store.

Each stage is a task that takes whatever the one before it has put out. So batches form by
themselves, and while one commits, the next is decoded, the replies of the last are written, and
those of the one before it are being confirmed.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic

import structlog

from worker.broker.session import Session
from worker.contract.allowed import ReplyQueues
from worker.contract.decode import decode, decoded_size
from worker.contract.delivery import Delivery
from worker.contract.encoding import dumps
from worker.contract.errors import Refusal, ReplyToRefused, Unprocessable, encode_error
from worker.contract.flow_run import FlowRun
from worker.contract.record import encode_record
from worker.events.outbox import Found, Outbox
from worker.line.answer import Answer
from worker.line.create import Create, Decided
from worker.line.settle import Settlement
from worker.line.values import Done, Request
from worker.observability import metrics
from worker.observability.stored import StoredLog
from worker.observability.traces import Traces
from worker.runs.creation import Requested, UnresolvedRun, requested_run
from worker.settings import Settings
from worker.store import Created, Decision, Existing, Store
from worker.tasks.mailbox import Mailbox

log = structlog.get_logger(__name__)

# Decoding holds the event loop; this many, or so many bytes, at a time keep it to a few
# milliseconds.
DECODE_MAX = 100
DECODE_MAX_BYTES = 256 * 1024
# What decoded requests may take in memory, as a share of WORKER_PREFETCH_SIZE (and as
# decode.decoded_size estimates it): a batch in the store, and as much in front of it and behind it.
# A megabyte of empty lists takes 25.
DECODED_SHARE = 3 / 8
# So much of it at a time becomes records: their bytes are held besides.
SETTLED_SHARE = 1 / 8
# Of a body that is larger, the bytes are let go once it is known that no dead letter needs them.
LARGE_BODY = 16 * 1024
# An error's body shows the request, and at each error what stood there: it may be twice as large as
# the request, and so many bytes more.
ERROR_BODY_ROOM = 64 * 1024


class Pipeline:
    """Serves the deliveries of one session until they end."""

    def __init__(self, session: Session, store: Store, settings: Settings, traces: Traces) -> None:
        self._session = session
        self._store = store
        self._settings = settings
        self._traces = traces
        self._allowed = settings.allowed
        self._reply_queues = ReplyQueues(settings.reply_to_pattern, session.topology.queue)
        self._max_decoded = int(settings.prefetch_size * DECODED_SHARE)
        self._max_settled = int(settings.prefetch_size * SETTLED_SHARE)
        self._done: Mailbox[Done] = Mailbox(lambda done: done.size)
        self._creating = Create(
            store,
            traces,
            batch_max=settings.batch_max,
            max_size=self._max_decoded,
            pass_on=self._created,
            room=lambda: self._done.room(self._max_decoded),
        )
        self._requests = self._creating.requests
        self._stored_log = StoredLog()
        # Where there are events.
        self._outbox: Outbox | None = None

    async def run(self) -> None:
        """Consume and serve until the session's deliveries end and all that were taken are
        acknowledged.

        Raises:
            ExceptionGroup: of :class:`ChannelLost` (the session ended; what was in flight comes
                again) or :class:`DatabaseAway`.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                if self._session.topology.events:
                    self._outbox = Outbox(self._session, self._store, tasks)
                    tasks.create_task(self._outbox.run())
                tasks.create_task(self._session.consumer.consume(self._settings.prefetch))
                tasks.create_task(self._decode())
                tasks.create_task(self._create())
                settlement = Settlement(self._session, tasks, self._traces, prefetch=self._settings.prefetch)
                tasks.create_task(self._settle(settlement))
                tasks.create_task(self._session.consumer.acknowledger.run())
        finally:
            self._stored_log.close()

    async def _decode(self) -> None:
        while deliveries := await self._session.consumer.deliveries.take(
            DECODE_MAX, max_size=DECODE_MAX_BYTES
        ):
            await self._requests.room(self._max_decoded, lambda: self._creating.aside_size)
            await self._done.room(self._max_decoded)
            started = monotonic()
            now = datetime.now(UTC)  # of all that were taken together: a database reads and writes it once
            for delivery in deliveries:
                size = decoded_size(delivery.message.body)
                try:
                    self._requests.put(Request(delivery, self._new_run(delivery, now), size))
                except Refusal as refusal:
                    self._refuse(delivery, refusal, size)
                except Exception:  # the edge: a message that breaks us harms no other
                    log.exception("decode_failed", message_id=delivery.message.message_id)
                    self._refuse(delivery, Unprocessable(), size)
            metrics.delivered(deliveries, monotonic() - started)
            if self._session.consumer.deliveries:  # taking what waits lets nobody else have a turn
                await asyncio.sleep(0)
        self._creating.close()

    def _new_run(self, delivery: Delivery, now: datetime) -> Requested:
        message = delivery.message
        traceparent = self._traces.taken(delivery)
        if message.reply_to and message.reply_to not in self._reply_queues:
            raise ReplyToRefused(message.reply_to)
        request = decode(
            message,
            max_body_bytes=self._settings.max_body_bytes,
            max_parameter_size=self._settings.max_parameter_size,
        )
        self._allowed.check_job_variables(request.body.job_variables)
        return requested_run(request, now, traceparent=traceparent or request.traceparent)

    def _refuse(self, delivery: Delivery, refusal: Refusal, size: int) -> None:
        log.warning(
            "refused",
            status=refusal.status,
            error=refusal.line,
            message_id=delivery.message.message_id,
            correlation_id=delivery.message.correlation_id,
        )
        # It shows the request, so it takes as much.
        self._done.put(Done(delivery, refusal.freed(), size))

    def _created(self, decided: Sequence[Decided], seconds: float) -> None:
        """Hand on what became of a batch. Records are written by the next stage: the database waits
        for nothing but the next batch.
        """
        recorded = None if self._outbox is None else _record(self._outbox, decided)
        counted: set[int] = set()
        for request, outcome in decided:
            try:
                self._pass_on(request, outcome, recorded, counted)
            except Exception:  # the edge: a run that breaks us harms no other
                log.exception("run_not_passed_on", message_id=request.delivery.message.message_id)
                self._refuse(request.delivery, Unprocessable(), request.size)
        metrics.batch(len(decided), seconds)
        self._log(decided, seconds)

    async def _create(self) -> None:
        await self._creating.run()
        self._done.close()
        if self._outbox is not None:
            self._outbox.close()

    def _log(self, decided: Sequence[Decided], seconds: float) -> None:
        created, existing, refused = (
            sum(isinstance(outcome, kind) for _, outcome in decided) for kind in (Created, Existing, Refusal)
        )
        self._stored_log.add(created=created, existing=existing, refused=refused, seconds=seconds)
        # Asked once a batch: to ask takes as long as to make a record.
        if not log.is_enabled_for(logging.DEBUG):
            return
        for request, outcome in decided:
            if isinstance(outcome, (Created, Existing)):
                log.debug(
                    "created" if isinstance(outcome, Created) else "existing",
                    flow_run_id=str(outcome.run.id),
                    name=outcome.run.name,
                    idempotency_key=outcome.run.idempotency_key,
                    message_id=request.delivery.message.message_id,
                )
        log.debug("batch", created=created, existing=existing, refused=refused, ms=round(seconds * 1000, 1))

    def _pass_on(
        self,
        request: Request,
        outcome: Decision,
        recorded: "asyncio.Future[None] | None",
        counted: set[int],
    ) -> None:
        delivery = request.delivery
        if isinstance(outcome, Refusal):
            self._refuse(delivery, outcome, request.size)
            return
        # A run that others have changed may turn out not to be shown, and then its request is kept.
        if delivery.size > LARGE_BODY and isinstance(outcome, Created):
            delivery = delivery.without_body()
        size = request.size
        if isinstance(outcome, Existing) or isinstance(request.new, UnresolvedRun):
            size += _added_size(outcome.run, counted)
        self._done.put(Done(delivery, outcome, size, recorded))

    async def _settle(self, settlement: Settlement) -> None:
        while done := await self._done.take(self._settings.batch_max, max_size=self._max_settled):
            now = datetime.now(UTC)
            answers: list[Answer] = []
            size = 0
            for each in done:
                answers.append(self._answer(each, now))
                size += len(answers[-1].body)
                # Runs of one deployment share its parameters, and each record has them.
                if size > self._max_settled:
                    await settlement.settle(answers)
                    answers, size = [], 0
            del done  # its records are written
            if answers:
                await settlement.settle(answers)
        await settlement.finish()
        self._session.consumer.acknowledger.close()

    def _answer(self, done: Done, now: datetime) -> Answer:
        outcome = done.outcome
        if not isinstance(outcome, Refusal):
            try:
                status = 201 if isinstance(outcome, Created) else 200
                body = encode_record(outcome.run, now)
                return Answer(done.delivery, status, body, run_id=outcome.run.id, recorded=done.recorded)
            except Exception as error:  # the edge: a run that can't be shown harms no other
                log.exception("record_not_written", flow_run_id=str(outcome.run.id))
                outcome = Unprocessable(f"The run of this request exists, and can't be shown: {error}")
        limit = min(self._session.size_limit.max_size, 2 * done.delivery.size + ERROR_BODY_ROOM)
        return Answer(
            done.delivery,
            outcome.status,
            encode_error(outcome, limit),
            refused=outcome.line,
            replied=not isinstance(outcome, ReplyToRefused),
        )


def _added_size(run: FlowRun, counted: set[int]) -> int:
    """What a run takes in memory that is not its request's, in bytes.

    Args:
        counted: the ids of values that were counted with other runs, as those of one deployment
            share its parameters; all of these runs are still held.
    """
    data = None if run.state is None else run.state.data
    values = (*run.parameters.values(), run.context, run.job_variables, data)
    new = [each for each in values if isinstance(each, (dict, list, str)) and id(each) not in counted]
    counted.update(map(id, new))
    return decoded_size(dumps(new)) if new else 0


def _record(outbox: Outbox, decided: Sequence[Decided]) -> "asyncio.Future[None] | None":
    """Have the events of a batch recorded. All its deliveries wait for them, those without an event
    as well: it is a matter of milliseconds.
    """
    return outbox.record(
        (outcome.run for _, outcome in decided if isinstance(outcome, Created)),
        (
            Found(outcome.run, request.delivery.redelivered)
            for request, outcome in decided
            if isinstance(outcome, Existing)
        ),
    )
