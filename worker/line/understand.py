"""The first stage: from deliveries to requests, or to refusals."""

import asyncio
from datetime import UTC, datetime
from time import monotonic

import structlog

from worker.broker.session import Session
from worker.contract.allowed import ReplyQueues
from worker.contract.decode import decode, decoded_size
from worker.contract.delivery import Delivery
from worker.contract.errors import Refusal, ReplyToRefused, StatesNotTold, Unprocessable
from worker.contract.plain import PlainMessages
from worker.line.answer import LARGE_BODY, Answering
from worker.line.create import Create
from worker.line.values import Request
from worker.observability import metrics
from worker.observability.traces import Traces
from worker.runs.creation import Requested, requested_run
from worker.settings import Settings
from worker.tasks.pace import Pace

log = structlog.get_logger(__name__)

# Decoding holds the event loop. This many deliveries at a time, or this many bytes, hold it for a
# few milliseconds.
DECODE_MAX = 100
DECODE_MAX_BYTES = 256 * 1024


class Understand:
    """Takes the session's deliveries, and gives each to one of the next two stages.

    Args:
        creating: gets the requests.
        answering: gets the refusals.
        pace: gives turns for large steps.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        traces: Traces,
        creating: Create,
        answering: Answering,
        pace: Pace,
    ) -> None:
        self._session = session
        self._settings = settings
        self._traces = traces
        self._creating = creating
        self._answering = answering
        self._pace = pace
        self._allowed = settings.allowed
        self._plain = settings.plain_messages
        self._reply_queues = ReplyQueues(settings.reply_to_pattern, session.topology.queue)

    async def run(self) -> None:
        """Decode until the session's deliveries end."""
        incoming = self._session.consumer.deliveries
        while deliveries := await incoming.take(DECODE_MAX, max_size=DECODE_MAX_BYTES):
            await self._creating.undecided.room()
            await self._answering.unanswered.room()
            started = monotonic()
            now = datetime.now(UTC)  # one for the batch: a database reads and writes it once
            for delivery in deliveries:
                if delivery.size > LARGE_BODY:
                    await self._pace.turn()
                size = decoded_size(delivery.message.body)
                plain = self._plain if self._plain and self._plain.have(delivery.message) else None
                if plain is not None and not plain.replies:
                    delivery = delivery.without_reply()
                try:
                    self._creating.take(Request(delivery, self._new_run(delivery, now, plain), size))
                except Refusal as refusal:
                    self._answering.refuse(delivery, refusal, size)
                except Exception:  # the edge: a message that breaks us harms no other
                    log.exception("decode_failed", message_id=delivery.message.message_id)
                    self._answering.refuse(delivery, Unprocessable(), size)
            metrics.delivered(deliveries, monotonic() - started)
            if incoming:  # the next take() will not suspend, but other tasks need a turn
                await asyncio.sleep(0)
        self._creating.close()

    def _new_run(self, delivery: Delivery, now: datetime, plain: PlainMessages | None) -> Requested:
        message = delivery.message
        traceparent = self._traces.taken(delivery)
        if message.reply_to and message.reply_to not in self._reply_queues:
            raise ReplyToRefused(message.reply_to)
        request = decode(
            message,
            max_body_bytes=self._settings.max_body_bytes,
            max_parameter_size=self._settings.max_parameter_size,
            plain=plain,
        )
        if request.kind.creates:
            self._allowed.check_job_variables(request.body.job_variables)
        elif self._settings.states == "off":
            raise StatesNotTold
        return requested_run(request, now, traceparent=traceparent or request.traceparent)
