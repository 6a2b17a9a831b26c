"""The end of the line: publish replies and dead-letter copies, wait for their confirms, hand the
deliveries to the acknowledger. It alone decides that a delivery is settled; knows no database.

What the broker does not take is published again, each answer by itself and off the line: nobody
else waits for it. A dead letter is tried until it is taken; a reply within reason.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import Enum
from functools import partial
from time import monotonic

import structlog

from worker.amqp.publication import Confirm, Publication
from worker.broker.connection import BrokerRefused, BrokerUnavailable, ChannelLost
from worker.broker.messages import is_mandatory
from worker.broker.publisher import Confirmation
from worker.broker.session import Session
from worker.broker.topology import TopologyMismatch
from worker.line.due import NO_REQUESTER, Due, count_bytes, due_of, other_queue, shortened, unroutable
from worker.line.giving_up import LEAST_PREFETCH, GivingUp
from worker.line.set_aside import SetAside
from worker.line.values import Answer
from worker.observability import metrics
from worker.observability.traces import Traces

log = structlog.get_logger(__name__)

# Confirms mostly come within milliseconds. One that hangs (a reply queue without a majority) must
# not hold up the acknowledgement of its neighbours for longer than this many seconds.
HANGING_SECONDS = 2.0
_CLOSES = "the broker closes the connection over it"


class _Verdict(Enum):
    """What a publication needs."""

    NOTHING = "nothing"
    TIME = "time"
    ANOTHER_NAME = "another name"
    ANOTHER_TRY = "another try"


class Settlement:
    """Publishes answers and has their deliveries acknowledged.

    Args:
        session: where they came from, and where all of this goes.
        tasks: what waits for confirms runs in here, so that its end is everything's end.
        traces: is told when replies go out and when they are settled.
        prefetch: how many deliveries are to be let in, once the session is on its way.
    """

    def __init__(self, session: Session, tasks: asyncio.TaskGroup, traces: Traces, *, prefetch: int) -> None:
        self._session = session
        self._tasks = tasks
        self._traces = traces
        self._prefetch = prefetch
        self._dead_letter_queue = session.topology.dead_letter_queue
        self._open = 0
        self._all_settled = asyncio.Event()
        self._again: list[Due] = []
        self._more_again = asyncio.Event()
        self._publishing_again = False
        self._aside = SetAside()
        self._records_events = session.topology.events
        self._giving_up = GivingUp()

    async def settle(self, answers: Sequence[Answer]) -> None:
        """Publish what the answers need; tasks of their own then wait for the confirms. Waits first
        until the answers before them leave room.

        Raises:
            ChannelLost: the session ended; all of them will be delivered again.
        """
        await self._session.consumer.in_flight.answers.room(sum(len(answer.body) for answer in answers))
        self._open += len(answers)
        self._all_settled.clear()
        due: list[Due] = []
        for answer in answers:
            self._traces.replied(answer.delivery)
            reply_to = answer.reply_to
            may = reply_to is None or self._session.direct_replies.may_publish(reply_to)
            if may is None:
                self._set_aside(answer.delivery.tag, reply_to or "")
                self._tasks.create_task(self._settle_after_trial(answer, reply_to or ""))
                continue
            each = due_of(self._session, answer, may=may)
            if self._is_suspect(each):
                self._set_aside(answer.delivery.tag, each.publications[-1].queue)
                self._tasks.create_task(self._publish_alone(each))
            elif self._is_large(each):
                self._tasks.create_task(self._publish_large(each))
            else:
                due.append(each)
        await self._publish(due)

    async def finish(self) -> None:
        """Wait until all answers that were given are settled."""
        if self._open:
            await self._all_settled.wait()

    async def _publish(self, due: Sequence[Due]) -> None:
        if due:
            with self._suspecting(lambda: due):
                confirmation = await self._session.publisher.publish(_all_publications(due))
            self._tasks.create_task(self._confirmed(due, confirmation))

    async def _settle_after_trial(self, answer: Answer, reply_to: str) -> None:
        """Settle the answer to a direct reply-to whose node nobody has seen; nobody else waits."""
        may = await self._may_publish(reply_to)
        due = due_of(self._session, answer, may=may)
        if self._is_suspect(due):
            await self._publish_alone(due)
        elif self._is_large(due):
            await self._publish_large(due)
        else:
            await self._publish([due])

    async def _may_publish(self, queue: str) -> bool:
        """Whether the broker takes a reply to this name."""
        may = self._session.direct_replies.may_publish(queue)
        return await self._session.direct_replies.try_to_publish(queue) if may is None else may

    def _is_large(self, due: Due) -> bool:
        return due.size > self._session.size_limit.taken

    async def _publish_large(self, due: Due) -> None:
        """Publish what is larger than all that the broker has taken so far, or less of it where it
        does not take so much.
        """
        if not await self._session.size_limit.takes(due.size):
            due = shortened(self._session, due)
        await self._publish([due])

    async def _confirmed(
        self, due: Sequence[Due], confirmation: Confirmation, *, apart: bool = False
    ) -> list[Due]:
        """Wait for the confirms; settle what is settled, and have published again what was not
        taken.

        Args:
            apart: on a channel of its own, whose end is not the session's.

        Returns:
            Those that such a channel's end left open.
        """
        started = monotonic()
        places, place = [], 0
        for each in due:
            places.append((place, each))
            place += len(each.publications)
        while places:
            try:
                with self._suspecting(partial(_unanswered, places, confirmation)):
                    await confirmation.wait(HANGING_SECONDS)
            except ChannelLost as lost:
                if not apart:
                    raise
                self._session.raise_if_lost(lost)
                return [each for _, each in places]
            settled: list[Due] = []
            hanging: list[tuple[int, Due]] = []
            for place, each in places:
                verdicts = [] if confirmation.all_taken else self._judge(each, confirmation, place)
                if _Verdict.TIME in verdicts:
                    hanging.append((place, each))
                elif not self._goes_out_again(each, verdicts):
                    settled.append(each)
            if settled:
                metrics.confirmed(monotonic() - started)
                self._settle_all(settled)
            places = hanging
        return []

    def _judge(self, due: Due, confirmation: Confirmation, place: int) -> list[_Verdict]:
        """What each of an answer's publications needs: a dead letter is never given up."""
        verdicts = []
        for index, publication in enumerate(due.publications, start=place):
            confirm = confirmation.confirms[index]
            if confirm is Confirm.ACK or index in confirmation.given_up:
                verdicts.append(_Verdict.NOTHING)
            elif confirm is Confirm.RETURN and other_queue(due.answer, publication) is not None:
                verdicts.append(_Verdict.ANOTHER_NAME)
            elif publication.queue != self._dead_letter_queue and (
                reason := self._reason_to_give_up(due, publication.queue, confirmation, index)
            ):
                confirmation.give_up(index)
                unroutable(due.answer, publication.queue, reason)
                verdicts.append(_Verdict.NOTHING)
            else:
                verdicts.append(_Verdict.TIME if confirm is None else _Verdict.ANOTHER_TRY)
        return verdicts

    def _reason_to_give_up(self, due: Due, queue: str, confirmation: Confirmation, index: int) -> str | None:
        in_flight = self._session.consumer.in_flight
        return self._giving_up.reason(
            queue,
            confirmation.confirms[index],
            waited=monotonic() - due.since,
            overtaken=confirmation.overtaken(index),
            others=self._aside.waiting_for(queue) - (due.answer.delivery.tag in self._aside),
            prefetch=in_flight.fitting(max(self._prefetch, LEAST_PREFETCH)),
        )

    def _goes_out_again(self, due: Due, verdicts: list[_Verdict]) -> bool:
        """Have what the broker did not take published again, if there is any."""
        if _Verdict.ANOTHER_NAME in verdicts:
            self._tasks.create_task(self._publish_renamed(due, verdicts))
        elif _Verdict.ANOTHER_TRY in verdicts:
            self._publish_later(due, verdicts)
        else:
            return False
        return True

    async def _publish_renamed(self, due: Due, verdicts: list[_Verdict]) -> None:
        """Publish a reply that came back to the queue of which its ``reply_to`` is the address."""
        publications: list[Publication] = []
        for publication, verdict in zip(due.publications, verdicts, strict=True):
            queue = other_queue(due.answer, publication)
            if verdict is _Verdict.ANOTHER_TRY:
                publications.append(publication)
            elif verdict is _Verdict.ANOTHER_NAME and queue is not None:
                if await self._may_publish(queue):
                    publications.append(publication._replace(queue=queue, mandatory=is_mandatory(queue)))
                else:
                    unroutable(due.answer, queue, NO_REQUESTER)
        due = replace(due, publications=tuple(publications))
        if self._is_suspect(due):
            await self._publish_alone(due)
        else:
            await self._publish([due])

    def _publish_later(self, due: Due, verdicts: Sequence[_Verdict]) -> None:
        missing = tuple(
            publication
            for publication, verdict in zip(due.publications, verdicts, strict=True)
            if verdict is _Verdict.ANOTHER_TRY
        )
        self._set_aside(due.answer.delivery.tag, missing[-1].queue)
        count_bytes(self._session, due.answer, missing)
        self._again.append(replace(due, publications=missing, at=monotonic() + due.backoff.next_delay()))
        self._more_again.set()
        if not self._publishing_again:
            self._publishing_again = True
            self._tasks.create_task(self._publish_again())

    def _set_aside(self, tag: int, queue: str) -> None:
        """Note that a delivery's answer waits for a queue: others are delivered in its place."""
        self._aside.add(tag, queue)
        metrics.dead_letters_waiting(self._aside.waiting_for(self._dead_letter_queue))
        if self._aside.take_up_prefetch(self._session.consumer.prefetch):
            self._tasks.create_task(self._session.consumer.renew())

    async def _publish_again(self) -> None:
        """Publish what waits for it, each at its time; ends when nothing does."""
        while self._again:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(each.at for each in self._again) - monotonic()):
                    await self._more_again.wait()
            self._more_again.clear()
            now = monotonic()
            due = [each for each in self._again if each.at <= now]
            self._again = [each for each in self._again if each.at > now]
            if due:
                self._tasks.create_task(self._publish_apart(due))
        self._publishing_again = False

    async def _publish_apart(self, due: Sequence[Due]) -> None:
        """Publish on a new channel: RabbitMQ goes on refusing on one on which a queue was full
        once, also when the limit is gone (seen with 3.10).
        """
        if letters := self._aside.waiting_for(self._dead_letter_queue):
            log.warning("dead_letters_not_taken", queue=self._dead_letter_queue, held=letters)
            try:
                await self._session.redeclare()
            except TopologyMismatch as error:
                log.error("dead_letter_queue_missing", error=str(error), held=letters)
        left: Sequence[Due] = due
        try:
            async with self._session.another_publisher() as publisher:
                confirmation = await publisher.publish(_all_publications(due))
                left = await self._confirmed(due, confirmation, apart=True)
        except ChannelLost as lost:
            self._session.raise_if_lost(lost)
        self._suspect(left)
        for each in left:
            await self._publish_alone(each)

    async def _publish_alone(self, due: Due) -> None:
        """Publish an answer over which the broker may have closed a connection: each publication
        alone. One over which it closes that as well is given up; a dead letter the broker then
        makes by itself.
        """
        if self._is_large(due) and not await self._session.size_limit.takes(due.size):
            due = shortened(self._session, due)
        verdicts: list[_Verdict] = []
        blamed = False
        for publication in due.publications:
            confirmation = await self._alone(due, publication)
            if confirmation is not None:
                (verdict,) = self._judge(replace(due, publications=(publication,)), confirmation, 0)
                verdicts.append(_Verdict.ANOTHER_TRY if verdict is _Verdict.TIME else verdict)
                continue
            blamed = True
            verdicts.append(_Verdict.NOTHING)
            if publication.queue == self._dead_letter_queue:
                due = replace(due, rejected=True)
                log.warning("dead_letter_left_to_the_broker", reason=_CLOSES, queue=publication.queue)
            else:
                unroutable(due.answer, publication.queue, _CLOSES)
        if not (blamed or _Verdict.ANOTHER_NAME in verdicts):
            self._session.suspects.discard(due.answer.delivery.message)
        if not self._goes_out_again(due, verdicts):
            self._settle_all([due])

    async def _alone(self, due: Due, publication: Publication) -> Confirmation | None:
        """What the broker says of a publication; None if it closes the connection over it."""
        while True:
            try:
                return await self._session.publish_alone(publication)
            except (BrokerUnavailable, BrokerRefused) as error:
                log.warning("not_published_alone", error=str(error), tries=due.backoff.tries + 1)
                await due.backoff.sleep()

    @contextmanager
    def _suspecting(self, unanswered: Callable[[], Iterable[Due]]) -> Iterator[None]:
        """What the broker has not answered for when it ends the session may be why it does."""
        try:
            yield
        except BaseException:
            if self._session.publisher.lost:
                self._suspect(unanswered())
            raise

    def _is_suspect(self, due: Due) -> bool:
        suspects = self._session.suspects
        return bool(suspects and due.publications) and due.answer.delivery.message in suspects

    def _suspect(self, due: Iterable[Due]) -> None:
        self._session.suspects.add(each.answer.delivery.message for each in due)

    def _settle_all(self, settled: Sequence[Due]) -> None:
        if answers := [each.answer for each in settled if not each.rejected]:
            self._settle_recorded(answers)
        if answers := [each.answer for each in settled if each.rejected]:
            self._settle(answers, rejected=True)

    def _settle_recorded(self, settled: Sequence[Answer]) -> None:
        """Settle each once its event is in the outbox: the reply was not to wait for it."""
        if not self._records_events:
            self._settle(settled)
            return
        waiting: dict[asyncio.Future[None] | None, list[Answer]] = {}
        for answer in settled:
            recorded = answer.recorded
            waiting.setdefault(None if recorded is None or recorded.done() else recorded, []).append(answer)
        for recorded, answers in waiting.items():
            if recorded is None:
                self._settle(answers)
            else:
                recorded.add_done_callback(partial(self._settle_when_recorded, answers))

    def _settle_when_recorded(self, answers: Sequence[Answer], _: "asyncio.Future[None]") -> None:
        self._settle(answers)

    def _settle(self, settled: Sequence[Answer], *, rejected: bool = False) -> None:
        """Have deliveries acknowledged; or rejected, so that the broker dead-letters them."""
        self._session.consumer.acknowledge([answer.delivery for answer in settled], rejected=rejected)
        metrics.settled(settled)
        for answer in settled:
            self._traces.settled(answer.delivery, answer.status, answer.run_id)
        if self._aside:
            self._aside.remove(answer.delivery.tag for answer in settled)
            metrics.dead_letters_waiting(self._aside.waiting_for(self._dead_letter_queue))
        self._open -= len(settled)
        if not self._open:
            self._all_settled.set()


def _unanswered(places: Iterable[tuple[int, Due]], confirmation: Confirmation) -> Iterator[Due]:
    """The answers of which the broker has not answered for all, each with its first place."""
    for place, each in places:
        each_place = range(place, place + len(each.publications))
        if any(confirmation.confirms[at] is None and at not in confirmation.given_up for at in each_place):
            yield each


def _all_publications(due: Sequence[Due]) -> list[Publication]:
    return [publication for each in due for publication in each.publications]
