"""A delivery that waits for confirms, and its answer's publications. Publishes nothing itself."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from uuid import UUID

import structlog

from worker.amqp.publication import Publication
from worker.broker.messages import dead_letter_copy, reply
from worker.broker.session import Session
from worker.contract.delivery import Delivery
from worker.contract.encoding import dumps
from worker.contract.message import reply_queues
from worker.line.values import Answer
from worker.observability import metrics
from worker.observability.traces import Traces
from worker.tasks.backoff import Backoff

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Pending:
    """A delivery whose answer the broker has not confirmed yet. It is settled once nothing is left.

    Attributes:
        status, run_id, refused, read, reply_to, recorded: as in the answer.
        since: the time of its first publication.
        left: its publications that the broker has not taken, without those that were given up.
        rejected: the broker makes the dead letter, since it does not take ours.
        traceparent: of the reply's span; None without traces.
    """

    delivery: Delivery
    status: int
    run_id: UUID | None
    refused: str | None
    read: bool
    reply_to: str | None
    recorded: "asyncio.Future[None] | None"
    since: float
    left: "list[Sent]" = field(default_factory=list)
    rejected: bool = False
    traceparent: str | None = None


@dataclass(slots=True, eq=False)
class Sent:
    """One publication of an answer, which may go out several times.

    Attributes:
        number: its place in the order of all publications.
        at: the time when it went out last.
    """

    pending: Pending
    publication: Publication
    number: int = 0
    at: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)


def pending_of(session: Session, answer: Answer, traces: Traces) -> Pending:
    """Make the publications that an answer needs. Begins the reply's span."""
    delivery, now = answer.delivery, datetime.now(UTC)
    pending = Pending(
        delivery,
        answer.status,
        answer.run_id,
        answer.refused,
        answer.read,
        answer.reply_to,
        answer.recorded,
        since=monotonic(),
    )
    if pending.reply_to is not None:
        pending.traceparent = traces.replied(delivery)
        publication = reply(
            delivery.message,
            status=answer.status,
            body=answer.body,
            now=now,
            error=answer.refused,
            traceparent=pending.traceparent,
        )
        pending.left.append(Sent(pending, publication))
    if answer.refused is not None and not answer.read:
        copy = dead_letter_copy(
            delivery.message,
            queue=session.topology.dead_letter_queue,
            status=answer.status,
            error=answer.refused,
            now=now,
            frame_max=session.publisher.frame_max,
            traceparent=traces.of(delivery),
        )
        pending.left.append(Sent(pending, copy))
    count_bytes(session, pending)
    return pending


def count_bytes(session: Session, pending: Pending) -> None:
    """Count the bytes of an answer's unconfirmed publications. A dead letter shares the request's
    body.
    """
    body = pending.delivery.message.body
    size = sum(each.publication.size for each in pending.left if each.publication.body is not body)
    session.consumer.in_flight.answer(pending.delivery.tag, len(body), size)


def other_queue(sent: Sent) -> str | None:
    """The queue to try next for a returned reply: its ``reply_to`` may be a queue's address in
    another protocol. None if there is no other queue.
    """
    reply_to = sent.pending.reply_to
    if reply_to is None or sent.publication.queue != reply_to:
        return None
    return next(iter(reply_queues(reply_to)[1:]), None)


def unroutable(pending: Pending, queue: str, reason: str) -> None:
    """Count and log a reply that is given up."""
    metrics.replies_unroutable.inc()
    _not_sent("reply_unroutable", pending, queue, reason)


def short_reply(pending: Pending, reason: str) -> Publication:
    """A reply with the reason why the full one is not sent."""
    message = pending.delivery.message
    _not_sent("reply_too_large", pending, message.reply_to, reason)
    detail = reason if pending.refused is None else f"{pending.refused} ({reason})"
    body = dumps({"detail": detail, "id": pending.run_id})
    error = pending.refused or reason
    return reply(
        message,
        status=pending.status,
        body=body,
        now=datetime.now(UTC),
        error=error,
        traceparent=pending.traceparent,
    )


def _not_sent(event: str, pending: Pending, reply_to: str | None, reason: str) -> None:
    message = pending.delivery.message
    log.warning(
        event,
        reply_to=reply_to,
        reason=reason,
        run_id=str(pending.run_id) if pending.run_id else None,
        status=pending.status,
        message_id=message.message_id,
        correlation_id=message.correlation_id,
    )
