"""The end of the line: publishes replies and dead letters, and acknowledges each delivery once the
broker has confirmed all its publications. No other module settles a delivery. It knows no database.

A publication that the broker refuses is published again, off the line: nothing else waits for it. A
dead letter is tried until the broker takes it, a reply within limits.
"""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count
from math import inf
from time import monotonic

import structlog

from worker.amqp.publication import Confirm, Outgoing
from worker.broker.connection import BrokerRefused, BrokerUnavailable, ChannelLost
from worker.broker.messages import is_mandatory
from worker.broker.publisher import Confirmation, Publisher
from worker.broker.session import Session
from worker.broker.topology import TopologyMismatch
from worker.line.giving_up import LEAST_PREFETCH, GivingUp
from worker.line.pending import (
    NO_REQUESTER,
    Pending,
    Sent,
    count_bytes,
    other_queue,
    pending_of,
    shorten,
    unroutable,
)
from worker.line.set_aside import SetAside
from worker.line.values import Answer
from worker.observability import metrics
from worker.observability.traces import Traces
from worker.tasks.backoff import pause

log = structlog.get_logger(__name__)

# Most confirms come within milliseconds. Some hang, as those of a reply queue without a majority.
# Look for them at intervals of this many seconds.
HANGING_SECONDS = 2.0
_CLOSES = "the broker closes the connection over it"


class Settlement:
    """Publishes answers, and has their deliveries acknowledged.

    Args:
        session: of the deliveries and the answers.
        tasks: runs everything that waits for the broker. A failure there ends the whole session.
        traces: notes when replies go out and when they are settled.
        prefetch: the full prefetch, which a session reaches after its first deliveries.
    """

    def __init__(self, session: Session, tasks: asyncio.TaskGroup, traces: Traces, *, prefetch: int) -> None:
        self._session = session
        self._tasks = tasks
        self._traces = traces
        self._prefetch = prefetch
        self._dead_letter_queue = session.topology.dead_letter_queue
        # By delivery tag. None until a trial has shown whether the reply can be sent.
        self._open: dict[int, Pending | None] = {}
        self._all_settled = asyncio.Event()
        self._numbers = count(1)
        self._latest_answered = 0
        self._answered: list[tuple[Sent, Confirm]] = []
        self._done: list[Pending] = []
        self._news = asyncio.Event()
        # Publications to repeat, and the time for the first of them.
        self._again: list[Sent] = []
        self._next = inf
        self._aside = SetAside()
        self._giving_up = GivingUp()
        self._counting = tasks.create_task(self._count_down())

    async def settle(self, answers: Sequence[Answer]) -> None:
        """Publish the answers. Waits first until earlier answers leave room.

        Raises:
            ChannelLost: the session ended. All their requests will be delivered again.
        """
        await self._session.consumer.in_flight.answers.room(sum(len(answer.body) for answer in answers))
        self._all_settled.clear()
        ready: list[Sent] = []
        for answer in answers:
            self._traces.replied(answer.delivery)
            reply_to = answer.reply_to
            may = reply_to is None or self._session.direct_replies.may_publish(reply_to)
            if may is None:
                self._open[answer.delivery.tag] = None
                self._set_aside(answer.delivery.tag, reply_to or "")
                self._tasks.create_task(self._publish_after_trial(answer, reply_to or ""))
            else:
                ready += self._ready(pending_of(self._session, answer, may=may))
        await self._publish(self._session.publisher, ready)

    async def finish(self) -> None:
        """Wait until all answers are settled."""
        if self._open:
            await self._all_settled.wait()
        self._counting.cancel()

    def _ready(self, pending: Pending) -> Sequence[Sent]:
        """The publications that may go out with others. Tasks publish the rest."""
        self._open[pending.delivery.tag] = pending
        if not pending.left:
            self._settle_soon(pending)
        elif self._is_suspect(pending):
            self._set_aside(pending.delivery.tag, pending.left[-1].publication.queue)
            self._tasks.create_task(self._publish_alone(tuple(pending.left)))
        elif pending.size > self._session.size_limit.taken:
            self._tasks.create_task(self._publish_large(pending))
        else:
            return pending.left
        return ()

    async def _publish(self, publisher: Publisher, sent: Sequence[Sent]) -> None:
        if not sent:
            return
        outgoing: list[Outgoing] = []
        now = monotonic()
        for each in sent:
            each.by, each.at, each.number = publisher, now, next(self._numbers)
            outgoing.append(Outgoing(each.publication, partial(self._confirmed, each)))
        await publisher.send(outgoing)

    async def _publish_after_trial(self, answer: Answer, reply_to: str) -> None:
        """Publish the answer to a direct reply-to with an unknown node. Nothing waits for it."""
        may = await self._session.direct_replies.try_to_publish(reply_to)
        ready = self._ready(pending_of(self._session, answer, may=may))
        await self._publish(self._session.publisher, ready)

    async def _publish_large(self, pending: Pending) -> None:
        """Publish a message larger than any accepted so far, shortened if the broker's limit is
        lower.
        """
        await self._shorten(pending)
        await self._publish(self._session.publisher, pending.left)

    async def _shorten(self, pending: Pending) -> None:
        if not await self._session.size_limit.takes(pending.size):
            shorten(self._session, pending)
            if not pending.left:
                self._settle_soon(pending)

    def _confirmed(self, sent: Sent, confirm: Confirm) -> None:
        """Note a confirm. Called within a read of the socket: :meth:`_count_down` does the rest."""
        self._answered.append((sent, confirm))
        self._news.set()

    async def _count_down(self) -> None:
        """Take each confirmed publication off its delivery, and settle the deliveries with none
        left. When it is time, publish refused ones again, and look for confirms that hang.
        """
        publisher = self._session.publisher
        publisher.ended.add_done_callback(lambda _: self._news.set())
        look = monotonic() + HANGING_SECONDS
        try:
            while True:
                await pause(min(look, self._next) - monotonic(), self._news)
                self._news.clear()
                self._take_answers()
                self._settle_done()
                if self._open and publisher.ended.done():
                    raise publisher.ended.result()
                now = monotonic()
                if now >= self._next:
                    self._publish_again(now)
                if now >= look:
                    look = now + HANGING_SECONDS
                    self._look_for_hanging(now)
        finally:
            if publisher.lost:
                # The broker may have ended the session over an answer that it did not confirm.
                self._suspect(
                    each
                    for each in self._open.values()
                    if each is not None and any(sent.by is publisher for sent in each.left)
                )

    def _take_answers(self) -> None:
        answered, self._answered = self._answered, []
        for sent, confirm in answered:
            self._latest_answered = max(self._latest_answered, sent.number)
            if sent.by is None:
                continue  # it was given up meanwhile
            sent.by = None
            if confirm is Confirm.ACK:
                self._take_off(sent)
            else:
                self._not_taken(sent, confirm)

    def _take_off(self, sent: Sent) -> None:
        """Stop waiting for a publication: the broker has it, or it is given up."""
        pending = sent.pending
        sent.by = None
        pending.left.remove(sent)
        if self._aside:
            self._aside.leave(pending.delivery.tag, sent.publication.queue)
        if not pending.left:
            self._settle_soon(pending)

    def _settle_soon(self, pending: Pending) -> None:
        self._done.append(pending)
        self._news.set()

    def _not_taken(self, sent: Sent, confirm: Confirm) -> None:
        queue = other_queue(sent) if confirm is Confirm.RETURN else None
        if queue is not None:
            self._tasks.create_task(self._publish_renamed(sent, queue))
        elif not self._gives_up(sent, confirm):
            self._publish_later(sent)

    def _gives_up(self, sent: Sent, confirm: Confirm | None) -> bool:
        """Give up a reply if there is a reason to. A dead letter is never given up."""
        queue, tag = sent.publication.queue, sent.pending.delivery.tag
        if queue == self._dead_letter_queue:
            return False
        reason = self._giving_up.reason(
            queue,
            confirm,
            waited=monotonic() - sent.pending.since,
            later=sent.number < self._latest_answered,
            others=self._aside.waiting_for(queue) - self._aside.waits(tag, queue),
            prefetch=self._session.consumer.in_flight.fitting(max(self._prefetch, LEAST_PREFETCH)),
        )
        if reason is not None:
            unroutable(sent.pending, queue, reason)
            self._take_off(sent)
        return reason is not None

    def _look_for_hanging(self, now: float) -> None:
        left = [sent for pending in self._open.values() if pending is not None for sent in pending.left]
        for sent in left:
            if sent.by is not None and sent.at < now - HANGING_SECONDS:
                self._gives_up(sent, None)

    async def _publish_renamed(self, sent: Sent, queue: str) -> None:
        """Publish a returned reply again, to the queue whose address its ``reply_to`` is."""
        may = self._session.direct_replies.may_publish(queue)
        if may is None:
            may = await self._session.direct_replies.try_to_publish(queue)
        if not may:
            unroutable(sent.pending, queue, NO_REQUESTER)
            self._take_off(sent)
            return
        sent.publication = sent.publication._replace(queue=queue, mandatory=is_mandatory(queue))
        if self._is_suspect(sent.pending):
            await self._publish_alone([sent])
        else:
            await self._publish(self._session.publisher, [sent])

    def _publish_later(self, sent: Sent) -> None:
        self._set_aside(sent.pending.delivery.tag, sent.publication.queue)
        count_bytes(self._session, sent.pending)
        sent.at = monotonic() + sent.backoff.next_delay()
        self._again.append(sent)
        self._next = min(self._next, sent.at)
        self._news.set()

    def _set_aside(self, tag: int, queue: str) -> None:
        """Note that a delivery's answer waits for a queue. Once many do, let in more deliveries."""
        self._aside.add(tag, queue)
        metrics.dead_letters_waiting(self._aside.waiting_for(self._dead_letter_queue))
        if self._aside.take_up_prefetch(self._session.consumer.prefetch):
            self._tasks.create_task(self._session.consumer.renew())

    def _publish_again(self, now: float) -> None:
        """Publish the waiting publications whose time has come."""
        if due := [each for each in self._again if each.at <= now]:
            self._again = [each for each in self._again if each.at > now]
            self._tasks.create_task(self._publish_apart(due))
        self._next = min((each.at for each in self._again), default=inf)

    async def _publish_apart(self, sent: Sequence[Sent]) -> None:
        """Publish on a new channel. Once a queue was full, RabbitMQ 3.10 goes on refusing on the
        old channel, even if the limit is gone.
        """
        if letters := self._aside.waiting_for(self._dead_letter_queue):
            log.warning("dead_letters_not_taken", queue=self._dead_letter_queue, held=letters)
            try:
                await self._session.redeclare()
            except TopologyMismatch as error:
                log.error("dead_letter_queue_missing", error=str(error), held=letters)
        publisher: Publisher | None = None
        try:
            async with self._session.another_publisher() as publisher:
                await self._publish(publisher, sent)
                while any(each.by is publisher for each in sent):
                    await publisher.answered(HANGING_SECONDS)
                    self._take_answers()
                return
        except ChannelLost as lost:
            self._session.raise_if_lost(lost)
        self._take_answers()  # those from before the end
        left = [each for each in sent if each.by is publisher]
        self._suspect(each.pending for each in left)
        for each in left:
            each.by = None
            await self._publish_alone([each])

    async def _publish_alone(self, all_sent: Sequence[Sent]) -> None:
        """Publish an answer over which the broker may have closed a connection, each publication
        alone. If the broker closes that connection too, give the publication up. For a dead letter
        the broker then makes its own.
        """
        pending = all_sent[0].pending
        if pending.size > self._session.size_limit.taken:
            await self._shorten(pending)
        cleared = True
        for sent in [each for each in all_sent if each in pending.left]:
            sent.number = next(self._numbers)
            confirmation = await self._alone(sent)
            confirm = None if confirmation is None else confirmation.confirms[0]
            if confirm is Confirm.ACK:
                self._take_off(sent)
            elif confirm is not None:
                cleared = cleared and not (confirm is Confirm.RETURN and other_queue(sent))
                self._not_taken(sent, confirm)
            elif confirmation is None:
                cleared = False
                self._give_up_closing(sent)
            elif not self._gives_up(sent, None):
                self._publish_later(sent)
        if cleared:
            self._session.suspects.discard(pending.delivery.message)

    async def _alone(self, sent: Sent) -> Confirmation | None:
        """The broker's answer to a publication. None if it closes the connection over it."""
        while True:
            try:
                return await self._session.publish_alone(sent.publication)
            except (BrokerUnavailable, BrokerRefused) as error:
                log.warning("not_published_alone", error=str(error), tries=sent.backoff.tries + 1)
                await sent.backoff.sleep()

    def _give_up_closing(self, sent: Sent) -> None:
        queue = sent.publication.queue
        if queue == self._dead_letter_queue:
            sent.pending.rejected = True
            log.warning("dead_letter_left_to_the_broker", reason=_CLOSES, queue=queue)
        else:
            unroutable(sent.pending, queue, _CLOSES)
        self._take_off(sent)

    def _is_suspect(self, pending: Pending) -> bool:
        suspects = self._session.suspects
        return bool(suspects) and pending.delivery.message in suspects

    def _suspect(self, all_pending: Iterable[Pending]) -> None:
        self._session.suspects.add(each.delivery.message for each in all_pending)

    def _settle_done(self) -> None:
        """Settle each delivery once its event is in the outbox. The reply did not wait for that."""
        done, self._done = self._done, []
        if not done:
            return
        metrics.confirmed(monotonic() - done[0].since)
        by_event: dict[asyncio.Future[None] | None, list[Pending]] = {}
        for pending in done:
            recorded = pending.recorded
            by_event.setdefault(None if recorded is None or recorded.done() else recorded, []).append(pending)
        for recorded, all_pending in by_event.items():
            if recorded is None:
                self._settle(all_pending)
            else:
                recorded.add_done_callback(partial(self._settle, all_pending))

    def _settle(self, settled: Sequence[Pending], _: object = None) -> None:
        """Acknowledge deliveries. Reject those that the broker must dead-letter itself."""
        for rejected in (False, True):
            if deliveries := [each.delivery for each in settled if each.rejected is rejected]:
                self._session.consumer.acknowledge(deliveries, rejected=rejected)
        metrics.settled(settled)
        for each in settled:
            self._traces.settled(each.delivery, each.status, each.run_id)
            del self._open[each.delivery.tag]
        if self._aside:
            self._aside.remove(each.delivery.tag for each in settled)
            metrics.dead_letters_waiting(self._aside.waiting_for(self._dead_letter_queue))
        if not self._open:
            self._all_settled.set()
