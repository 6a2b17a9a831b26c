"""The end of the line: publish replies and dead-letter copies, wait for their confirms,
acknowledge. It alone decides that a delivery is settled; knows no database.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from uuid import UUID

import structlog

from worker.backoff import Backoff
from worker.broker.channel import ChannelLost
from worker.broker.confirmation import Confirmation
from worker.broker.delivery import Delivery
from worker.broker.publication import Publication, dead_letter_copy, reply
from worker.broker.session import Session
from worker.broker.topology import TopologyMismatch
from worker.contract.errors import Refusal, ReplyToRefused, encode_error
from worker.observability import metrics
from worker.observability.traces import Traces

log = structlog.get_logger(__name__)

# How often a reply is published that the broker refuses, before the requester is given up as one
# whose queue is gone. With the waits of a Backoff that is about 25 seconds: a replicated reply
# queue whose node died has another leader by then, also on a machine that is busy
# (tests/faults/test_cluster.py needed more than 10), and one that is full holds up few others.
REPLY_TRIES = 10
# As long as that, in seconds, for a reply of which the broker says nothing, while it confirmed one
# that went out later: not the broker is slow, but this queue has no majority.
REPLY_SECONDS = 25.0
# And this long where nothing went out later: before the broker closes the channel over a delivery
# that is held (30 minutes).
LONE_REPLY_SECONDS = 600.0
# Confirms mostly come within milliseconds. One that hangs (a reply queue without a majority) must
# not hold up the acknowledgement of its neighbours for longer than this many seconds.
HANGING_SECONDS = 2.0
# An ack is not on the way of any request, but costs a quorum queue as much as a message: an entry
# in its log, flushed to disk. So those of this many seconds go together.
ACKNOWLEDGE_SECONDS = 0.01
# And with a small prefetch those of fewer: as many as fill it at this rate, a tenth of which a
# worker serves. So what waits for its ack is at most a tenth of the prefetch, and holds up no
# delivery.
PREFETCH_RATE = 100_000
# And the last ones, when all is ended half way, may take so many seconds to write.
LAST_ACK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What is to be said to one delivery: a flow run record, or a refusal.

    Attributes:
        status: the HTTP status that Prefect answers.
        body: the JSON of the record or of the error.
        run_id: the run that the record shows; None for a refusal.
        refusal: why the request is refused; its whole message then goes to the dead letters as
            well.
    """

    delivery: Delivery
    status: int
    body: bytes
    run_id: UUID | None = None
    refusal: Refusal | None = None

    @classmethod
    def refused(cls, delivery: Delivery, refusal: Refusal) -> "Answer":
        """The answer to a request that is refused."""
        return cls(delivery, refusal.status, encode_error(refusal), refusal=refusal)


@dataclass(frozen=True, slots=True)
class _Published:
    """An answer whose publications are at the broker, under the delivery tags from ``first`` on."""

    answer: Answer
    publications: tuple[Publication, ...]
    first: int

    def tags(self) -> range:
        return range(self.first, self.first + len(self.publications))


class Settlement:
    """Publishes answers and acknowledges their deliveries.

    Args:
        session: where they came from, and where all of this goes.
        tasks: what waits for confirms runs in here, so that its end is everything's end.
        traces: is told when replies go out and when they are settled.
    """

    def __init__(self, session: Session, tasks: asyncio.TaskGroup, traces: Traces) -> None:
        self._session = session
        self._tasks = tasks
        self._traces = traces
        self._settled: list[Answer] = []
        self._acknowledging = False

    async def settle(self, answers: Sequence[Answer]) -> None:
        """Publish what the answers need; tasks of their own then wait for the confirms, and
        acknowledge.

        Raises:
            ChannelLost: the session ended; all of them will be delivered again.
        """
        now = datetime.now(UTC)
        for answer in answers:
            self._traces.replied(answer.delivery)
        await self._publish(
            [(answer, await self._publications(answer, now)) for answer in answers], Backoff()
        )

    async def _publications(self, answer: Answer, now: datetime) -> tuple[Publication, ...]:
        message, refusal = answer.delivery.message, answer.refusal
        wanted = bool(message.reply_to) and not isinstance(refusal, ReplyToRefused)
        if wanted and not await self._session.direct_replies.may_publish(message.reply_to or ""):
            self._unroutable(answer, message.reply_to, "no requester has this direct reply-to")
            wanted = False
        replies = (reply(message, status=answer.status, body=answer.body, now=now),) if wanted else ()
        if refusal is None:
            return replies
        copy = dead_letter_copy(
            message,
            queue=self._session.topology.dead_letter_queue,
            status=refusal.status,
            error=refusal.line,
            now=now,
            login=self._session.login,
            frame_max=self._session.frame_max,
        )
        return (*replies, copy)

    async def _publish(self, due: Iterable[tuple[Answer, tuple[Publication, ...]]], backoff: Backoff) -> None:
        started = monotonic()
        due = list(due)
        confirmation = await self._session.publish([each for _, publications in due for each in publications])
        published: list[_Published] = []
        tag = confirmation.first
        for answer, publications in due:
            published.append(_Published(answer, publications, tag))
            tag += len(publications)
        self._tasks.create_task(self._confirmed(published, confirmation, backoff, started))

    async def _confirmed(
        self, published: list[_Published], confirmation: Confirmation, backoff: Backoff, started: float
    ) -> None:
        """Wait for the confirms; have acknowledged what is settled, and publish again what the
        broker did not take.
        """
        while published:
            await confirmation.wait(HANGING_SECONDS)
            waited = monotonic() - started
            if waited > LONE_REPLY_SECONDS:
                self._give_up_replies(published, confirmation, up_to=confirmation.last)
            elif waited > REPLY_SECONDS:
                self._give_up_replies(published, confirmation, up_to=confirmation.latest)
            again: list[tuple[Answer, tuple[Publication, ...]]] = []
            settled: list[Answer] = []
            hanging: list[_Published] = []
            for each in published:
                if confirmation.flawless:
                    settled.append(each.answer)
                elif not confirmation.outstanding.isdisjoint(each.tags()):
                    hanging.append(each)
                elif missing := self._missing(each, confirmation, give_up=backoff.tries + 1 >= REPLY_TRIES):
                    again.append((each.answer, missing))
                else:
                    settled.append(each.answer)
            if settled:
                metrics.confirmed(monotonic() - started)
                self._acknowledge(settled)
            published = hanging
            if again:
                # Not here: what hangs is not to hold them up.
                self._tasks.create_task(self._publish_again(again, copy(backoff)))

    def _acknowledge(self, settled: Iterable[Answer]) -> None:
        self._settled.extend(settled)
        if not self._acknowledging:
            self._acknowledging = True
            self._tasks.create_task(self._acknowledge_together())

    async def _acknowledge_together(self) -> None:
        """Acknowledge what is settled, at once, and what is settled meanwhile, together; ends when
        nothing more was.
        """
        try:
            while self._settled:
                await self._acknowledge_settled()
                await asyncio.sleep(min(ACKNOWLEDGE_SECONDS, self._session.prefetch / PREFETCH_RATE))
            self._acknowledging = False
        finally:
            if self._settled:  # all of it is being ended: these need not come again
                with suppress(ChannelLost, TimeoutError):
                    async with asyncio.timeout(LAST_ACK_SECONDS):
                        await self._acknowledge_settled()

    async def _acknowledge_settled(self) -> None:
        settled, self._settled = self._settled, []
        await self._session.acknowledge(answer.delivery for answer in settled)
        metrics.settled(settled)
        for answer in settled:
            self._traces.settled(answer.delivery, answer.status, answer.run_id)

    async def _publish_again(
        self, again: list[tuple[Answer, tuple[Publication, ...]]], backoff: Backoff
    ) -> None:
        await backoff.sleep()
        if any(
            publication.queue == self._session.topology.dead_letter_queue
            for _, p in again
            for publication in p
        ):
            try:
                await self._session.redeclare()
            except TopologyMismatch as error:
                log.error("dead_letter_queue_missing", error=str(error), held=len(again))
        await self._publish(again, backoff)

    def _give_up_replies(
        self, published: list[_Published], confirmation: Confirmation, *, up_to: int
    ) -> None:
        """Wait no longer for confirms of replies up to a tag; for those of dead letters it is
        waited until they come.
        """
        for each in published:
            for tag, publication in zip(each.tags(), each.publications, strict=True):
                late = tag in confirmation.outstanding and tag <= up_to
                if late and publication.queue != self._session.topology.dead_letter_queue:
                    confirmation.outstanding.discard(tag)
                    self._unroutable(each.answer, publication.queue, "the broker does not confirm it")

    def _missing(
        self, published: _Published, confirmation: Confirmation, *, give_up: bool
    ) -> tuple[Publication, ...]:
        """What of an answer's publications has to be published again: a dead letter always, a reply
        within reason.
        """
        missing: list[Publication] = []
        for tag, publication in zip(published.tags(), published.publications, strict=True):
            returned, refused = tag in confirmation.returned, tag in confirmation.refused
            if not (returned or refused):
                continue
            if publication.queue == self._session.topology.dead_letter_queue or (refused and not give_up):
                missing.append(publication)
            else:
                reason = "no such queue" if returned else "the broker does not take it"
                self._unroutable(published.answer, publication.queue, reason)
        return tuple(missing)

    def _unroutable(self, answer: Answer, reply_to: str | None, reason: str) -> None:
        metrics.replies_unroutable.inc()
        log.warning(
            "reply_unroutable",
            reply_to=reply_to,
            reason=reason,
            run_id=str(answer.run_id) if answer.run_id else None,
            status=answer.status,
            message_id=answer.delivery.message.message_id,
            correlation_id=answer.delivery.message.correlation_id,
        )
