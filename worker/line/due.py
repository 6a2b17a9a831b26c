"""What is published for an answer: its reply and its dead letter, as far as the broker can carry
them; publishes nothing.
"""

from collections.abc import Sequence
from dataclasses import field, replace
from datetime import UTC, datetime
from time import monotonic

import structlog

from worker.amqp.publication import Publication
from worker.broker.messages import dead_letter_copy, reply
from worker.broker.session import Session
from worker.contract.encoding import dumps
from worker.contract.immutable import immutable
from worker.contract.message import reply_queues
from worker.line.values import Answer
from worker.observability import metrics
from worker.tasks.backoff import Backoff

log = structlog.get_logger(__name__)

NO_REQUESTER = "no requester has this direct reply-to"


@immutable
class Due:
    """An answer, and what of it the broker has not confirmed.

    Attributes:
        since: when it was published first.
        at: when it is published again.
        rejected: whether the broker is to make the dead letter by itself.
    """

    answer: Answer
    publications: tuple[Publication, ...]
    since: float
    at: float = 0.0
    rejected: bool = False
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def size(self) -> int:
        """The size of the largest publication, in bytes."""
        return max((each.size for each in self.publications), default=0)


def due_of(session: Session, answer: Answer, *, may: bool) -> Due:
    """What an answer needs.

    Args:
        session: on which it came.
        may: whether a reply may be sent to where the request wants it.
    """
    message, now, reply_to = answer.delivery.message, datetime.now(UTC), answer.reply_to
    publications: list[Publication] = []
    if reply_to is not None and may:
        publications.append(_reply(session, answer, now))
    elif reply_to is not None:
        unroutable(answer, reply_to, NO_REQUESTER)
    if answer.refused is not None:
        copy = dead_letter_copy(
            message,
            queue=session.topology.dead_letter_queue,
            status=answer.status,
            error=answer.refused,
            now=now,
            frame_max=session.publisher.frame_max,
        )
        publications.append(copy)
    count_bytes(session, answer, publications)
    answer.body = b""  # a publication has it
    return Due(answer, tuple(publications), since=monotonic())


def count_bytes(session: Session, answer: Answer, publications: Sequence[Publication]) -> None:
    """Count what an answer takes while these publications are not confirmed: a dead letter has the
    request's own body.
    """
    body = answer.delivery.message.body
    size = sum(each.size for each in publications if each.body is not body)
    session.consumer.in_flight.answer(answer.delivery.tag, len(body), size)


def shortened(session: Session, whole: Due) -> Due:
    """What the broker can carry: the reason in the place of a reply that is too large, and no dead
    letter of that size. The broker makes one by itself of what is rejected.
    """
    now, limit = datetime.now(UTC), session.size_limit.max_size
    publications: list[Publication] = []
    rejected = False
    for each in whole.publications:
        if each.size <= limit:
            publications.append(each)
        elif each.queue == session.topology.dead_letter_queue:
            rejected = True
        else:
            publications.append(_reply(session, whole.answer, now, each.size))
    return replace(whole, publications=tuple(publications), rejected=rejected)


def other_queue(answer: Answer, publication: Publication) -> str | None:
    """The queue to try once more where a reply came back: the one that its ``reply_to`` is the
    address of. None if there is no other.
    """
    reply_to = answer.reply_to
    if reply_to is None or publication.queue != reply_to:
        return None
    return next(iter(reply_queues(reply_to)[1:]), None)


def unroutable(answer: Answer, reply_to: str | None, reason: str) -> None:
    """Count and log a reply that is given up."""
    metrics.replies_unroutable.inc()
    _not_sent("reply_unroutable", answer, reply_to, reason)


def _reply(session: Session, answer: Answer, now: datetime, size: int | None = None) -> Publication:
    """The reply, or the reason alone where the broker can't carry the whole.

    Args:
        size: what the whole takes, where its body is not at hand any more; in bytes.
    """
    size, limit = size or len(answer.body), session.size_limit.max_size
    body, line = answer.body, answer.refused
    if size > limit:
        reason = f"The reply has {size:,} bytes, and the broker takes {limit:,}."
        _not_sent("reply_too_large", answer, answer.delivery.message.reply_to, reason)
        line = line or reason
        detail = reason if answer.refused is None else f"{answer.refused} ({reason})"
        body = dumps({"detail": detail, "id": answer.run_id})
    return reply(answer.delivery.message, status=answer.status, body=body, now=now, error=line)


def _not_sent(event: str, answer: Answer, reply_to: str | None, reason: str) -> None:
    log.warning(
        event,
        reply_to=reply_to,
        reason=reason,
        run_id=str(answer.run_id) if answer.run_id else None,
        status=answer.status,
        message_id=answer.delivery.message.message_id,
        correlation_id=answer.delivery.message.correlation_id,
    )
