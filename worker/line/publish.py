"""The fourth stage: publishes each answer until the broker takes it, or until it is given up. It
settles no delivery, and knows no database.

A publication that the broker refuses is published again, off the line: nothing else waits for it.
:mod:`worker.line.retry` has the rule.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from time import monotonic

import structlog

from worker.amqp.publication import Confirm, Outgoing
from worker.broker.connection import BrokerRefused, BrokerUnavailable, ChannelLost
from worker.broker.messages import is_mandatory
from worker.broker.publisher import Confirmation, Publisher
from worker.broker.session import Session
from worker.broker.topology import TopologyMismatch
from worker.line.patience import Patience
from worker.line.pending import Pending, Sent, count_bytes, other_queue, short_reply, unroutable
from worker.line.retry import LEAST_PREFETCH, Retry
from worker.line.set_aside import SetAside
from worker.observability import metrics
from worker.tasks.backoff import pause

log = structlog.get_logger(__name__)


class Publishing:
    """Publishes the answers of deliveries.

    Args:
        session: of the deliveries and the answers.
        tasks: runs everything that waits for the broker. A failure there ends the whole session.
        done: gets the deliveries whose publications the broker has, without those given up.
        prefetch: the full prefetch, which a session reaches after its first deliveries.
        patience: for refused publications and missing confirms.
    """

    def __init__(
        self,
        session: Session,
        tasks: asyncio.TaskGroup,
        done: Callable[[Sequence[Pending]], None],
        *,
        prefetch: int,
        patience: Patience,
    ) -> None:
        self._session = session
        self._tasks = tasks
        self._pass_on = done
        self._prefetch = prefetch
        self._patience = patience
        self._dead_letter_queue = session.topology.dead_letter_queue
        self._numbers = count(1)
        self._latest_answered = 0
        self._unconfirmed: dict[Sent, Publisher] = {}
        self._aside = SetAside()
        self._retry = Retry(patience)
        # For the next turn of run().
        self._news = asyncio.Event()
        self._answered: list[tuple[Sent, Confirm]] = []
        self._done: list[Pending] = []
        self._due: list[Sent] = []

    async def publish(self, answers: Iterable[Pending]) -> None:
        """Publish answers together. Tasks publish those that can't go out with others.

        Raises:
            ChannelLost: the session ended. All their requests will be delivered again.
        """
        ready: list[Sent] = []
        taken, may_publish = self._session.size_limit.taken, self._session.direct_replies.may_publish
        for pending in answers:
            if self._is_suspect(pending):
                self._tasks.create_task(self._publish_alone(tuple(pending.left)))
                continue
            for sent in tuple(pending.left):
                if sent.publication.size <= taken and may_publish(sent.publication.queue):
                    ready.append(sent)
                else:
                    self._tasks.create_task(self._publish_singly(sent))
        await self._publish(self._session.publisher, ready)

    async def run(self) -> None:
        """Take confirms, until this is cancelled: pass on the deliveries that need no more, publish
        refused publications again, and look for confirms that hang.

        Raises:
            ChannelLost: the session ended before all confirms came.
        """
        publisher = self._session.publisher
        publisher.ended.add_done_callback(lambda _: self._news.set())
        look = monotonic() + self._patience.hanging
        try:
            while True:
                await pause(look - monotonic(), self._news)
                self._news.clear()
                self._take_answers()
                self._pass_on_done()
                if self._unconfirmed and publisher.ended.done():
                    raise publisher.ended.result()
                if self._due:
                    due, self._due = self._due, []
                    self._tasks.create_task(self._publish_apart(due))
                if (now := monotonic()) >= look:
                    look = now + self._patience.hanging
                    self._look_for_hanging(now - self._patience.hanging)
        finally:
            if publisher.lost:
                # The broker may have ended the session over an answer that it did not confirm.
                self._suspect(sent for sent, by in self._unconfirmed.items() if by is publisher)

    async def _publish(self, publisher: Publisher, all_sent: Sequence[Sent]) -> None:
        if not all_sent:
            return
        outgoing: list[Outgoing] = []
        now = monotonic()
        for sent in all_sent:
            self._unconfirmed[sent] = publisher
            sent.at, sent.number = now, next(self._numbers)
            outgoing.append(Outgoing(sent.publication, partial(self._confirmed, sent)))
        await publisher.send(outgoing)

    def _confirmed(self, sent: Sent, confirm: Confirm) -> None:
        """Note a confirm. Called within a read of the socket: :meth:`run` does the rest."""
        self._answered.append((sent, confirm))
        self._news.set()

    def _take_answers(self) -> None:
        answered, self._answered = self._answered, []
        for sent, confirm in answered:
            self._latest_answered = max(self._latest_answered, sent.number)
            if self._unconfirmed.pop(sent, None) is None:
                continue  # it was given up meanwhile
            if confirm is Confirm.ACK:
                self._take_off(sent)
            else:
                self._not_taken(sent, confirm)

    def _take_off(self, sent: Sent) -> None:
        """Stop waiting for a publication: the broker has it, or it is given up."""
        pending = sent.pending
        pending.left.remove(sent)
        if self._aside:
            self._aside.leave(pending.delivery.tag, sent.publication.queue)
        if not pending.left:
            self._done.append(pending)
            self._news.set()

    def _pass_on_done(self) -> None:
        done, self._done = self._done, []
        if self._aside:
            self._aside.remove(pending.delivery.tag for pending in done)
            metrics.dead_letters_waiting(self._aside.waiting_for(self._dead_letter_queue))
        if done:
            self._pass_on(done)

    def _not_taken(self, sent: Sent, confirm: Confirm) -> None:
        """Try another queue if there is one. Otherwise try again, or give up."""
        queue = other_queue(sent) if confirm is Confirm.RETURN else None
        if queue is not None:
            sent.publication = sent.publication._replace(queue=queue, mandatory=is_mandatory(queue))
            self._tasks.create_task(self._publish_singly(sent))
        elif not self._gives_up(sent, confirm):
            self._publish_later(sent)

    def _gives_up(self, sent: Sent, confirm: Confirm | None) -> bool:
        """Give up a reply if there is a reason to. A dead letter is tried until it is taken."""
        queue, tag = sent.publication.queue, sent.pending.delivery.tag
        if queue == self._dead_letter_queue:
            return False
        reason = self._retry.reason_to_give_up(
            queue,
            confirm,
            now=monotonic(),
            since=sent.pending.since,
            later=sent.number < self._latest_answered,
            others=self._aside.waiting_for(queue) - self._aside.waits(tag, queue),
            prefetch=self._session.consumer.in_flight.fitting(max(self._prefetch, LEAST_PREFETCH)),
        )
        if reason is not None:
            self._give_up(sent, reason)
        return reason is not None

    def _give_up(self, sent: Sent, reason: str) -> None:
        """Give up a reply. Leave a dead letter to the broker, which makes one of a rejected
        delivery.
        """
        self._unconfirmed.pop(sent, None)
        if sent.publication.queue == self._dead_letter_queue:
            sent.pending.rejected = True
            log.warning("dead_letter_left_to_the_broker", reason=reason, queue=self._dead_letter_queue)
        else:
            unroutable(sent.pending, sent.publication.queue, reason)
        self._take_off(sent)

    def _look_for_hanging(self, before: float) -> None:
        for sent in [each for each in self._unconfirmed if each.at < before]:
            self._gives_up(sent, None)

    def _publish_later(self, sent: Sent) -> None:
        self._set_aside(sent)
        count_bytes(self._session, sent.pending)
        asyncio.get_running_loop().call_later(sent.backoff.next_delay(), self._publish_soon, sent)

    def _publish_soon(self, sent: Sent) -> None:
        self._due.append(sent)
        self._news.set()

    def _set_aside(self, sent: Sent) -> None:
        """Note that an answer waits for a queue. Once many do, let in more deliveries."""
        self._aside.add(sent.pending.delivery.tag, sent.publication.queue)
        metrics.dead_letters_waiting(self._aside.waiting_for(self._dead_letter_queue))
        if self._aside.take_up_prefetch(self._session.consumer.prefetch):
            self._tasks.create_task(self._session.consumer.renew())

    async def _publish_singly(self, sent: Sent) -> None:
        """Publish what may end a connection: find out first whether the broker takes it."""
        if self._is_suspect(sent.pending):
            await self._publish_alone([sent])
        elif await self._found_publishable(sent):
            await self._publish(self._session.publisher, [sent])

    async def _found_publishable(self, sent: Sent) -> bool:
        """Shorten a reply that is too large for the broker. False if the publication is given up: a
        reply to a requester that the broker does not know, or a dead letter that is too large.
        """
        queue, size = sent.publication.queue, sent.publication.size
        replies, limit = self._session.direct_replies, self._session.size_limit
        may = replies.may_publish(queue)
        if may is None:
            self._set_aside(sent)
            may = await replies.try_to_publish(queue)
        if not may:
            self._give_up(sent, "no requester has this direct reply-to")
        elif size > limit.taken and not await limit.takes(size):
            reason = f"has {size:,} bytes, and the broker takes {limit.max_size:,}"
            if queue == self._dead_letter_queue:
                self._give_up(sent, f"it {reason}")
                return False
            sent.publication = short_reply(sent.pending, f"The reply {reason}.")
        return may

    async def _publish_apart(self, all_sent: Sequence[Sent]) -> None:
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
                await self._publish(publisher, all_sent)
                while any(self._unconfirmed.get(sent) is publisher for sent in all_sent):
                    await publisher.answered(self._patience.hanging)
                    self._take_answers()
                return
        except ChannelLost as lost:
            self._session.raise_if_lost(lost)
        if publisher is None:  # no channel could be opened
            for sent in all_sent:
                self._publish_later(sent)
            return
        self._take_answers()  # those from before the end
        left = [sent for sent in all_sent if self._unconfirmed.get(sent) is publisher]
        self._suspect(left)
        for sent in left:
            del self._unconfirmed[sent]
            await self._publish_alone([sent])

    async def _publish_alone(self, all_sent: Sequence[Sent]) -> None:
        """Publish an answer over which the broker may have closed a connection, each publication
        alone. If the broker closes that connection too, give the publication up.
        """
        pending = all_sent[0].pending
        self._set_aside(all_sent[-1])
        cleared = True
        for sent in all_sent:
            if not await self._found_publishable(sent):
                continue
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
                self._give_up(sent, "the broker closes the connection over it")
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

    def _is_suspect(self, pending: Pending) -> bool:
        suspects = self._session.suspects
        return bool(suspects) and pending.delivery.message in suspects

    def _suspect(self, all_sent: Iterable[Sent]) -> None:
        self._session.suspects.add(sent.pending.delivery.message for sent in all_sent)
