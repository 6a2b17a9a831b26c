"""The third stage: makes the answer to each request, a record or an error."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from worker.broker.session import Session
from worker.contract.decode import decoded_size
from worker.contract.delivery import Delivery
from worker.contract.encoding import dumps
from worker.contract.errors import Refusal, ReplyToRefused, Unprocessable, encode_error
from worker.contract.flow_run import FlowRun
from worker.contract.kinds import kind_of
from worker.contract.record import encode_record
from worker.events.outbox import Found, Outbox
from worker.line.settle import Settlement
from worker.line.values import Answer, Decided, Done, Request
from worker.observability import metrics
from worker.observability.stored import StoredLog
from worker.runs.creation import UnresolvedRun
from worker.store import Created, Decision, Existing, Read
from worker.tasks.budget import Budget
from worker.tasks.mailbox import Mailbox
from worker.tasks.pace import Pace

log = structlog.get_logger(__name__)

# In bytes. Larger bodies are freed once no dead letter can need them.
LARGE_BODY = 16 * 1024
# In bytes of memory. The answer to a larger decoded request takes milliseconds to write.
LARGE = 512 * 1024
# An error's body repeats the request, and the wrong value with each error. So it may be twice as
# large as the request, plus this many bytes.
ERROR_BODY_ROOM = 64 * 1024


class Answering:
    """Takes decided requests, and has their answers published.

    Args:
        session: has the broker's limit on message sizes, and the acknowledger, which this stage
            closes at the end.
        batch_max: answers in one batch at most.
        max_decided: limit of the requests that wait here, in bytes of memory.
        max_size: limit of the records of one batch, in bytes.
        pace: gives turns for large steps.

    Attributes:
        outbox: records the runs' events; None without events.
        unanswered: the bytes of the requests that wait here.
    """

    def __init__(
        self, session: Session, *, batch_max: int, max_decided: int, max_size: int, pace: Pace
    ) -> None:
        self.outbox: Outbox | None = None
        self._session = session
        self._batch_max = batch_max
        self._max_size = max_size
        self._pace = pace
        self.unanswered = Budget(max_decided)
        self._done: Mailbox[Done] = Mailbox(lambda done: done.size)
        self._stored_log = StoredLog()

    def refuse(self, delivery: Delivery, refusal: Refusal, size: int) -> None:
        """Take a refusal.

        Args:
            size: of the decoded request, in bytes of memory.
        """
        log.warning(
            "refused",
            status=refusal.status,
            error=refusal.line,
            message_id=delivery.message.message_id,
            correlation_id=delivery.message.correlation_id,
        )
        # The error shows the request, so it is as large.
        self._put(Done(delivery, refusal.freed(), size))

    def take(self, decided: Sequence[Decided], seconds: float) -> None:
        """Take a decided batch, which took this many seconds. Its records are written later: the
        database can begin the next batch.
        """
        recorded = None if self.outbox is None else _record(self.outbox, decided)
        counted: set[int] = set()
        for request, outcome in decided:
            try:
                self._take_one(request, outcome, recorded, counted)
            except Exception:  # the edge: a run that breaks us harms no other
                log.exception("run_not_passed_on", message_id=request.delivery.message.message_id)
                self.refuse(request.delivery, Unprocessable(), request.size)
        metrics.batch(len(decided), seconds)
        self._log(decided, seconds)

    def close(self) -> None:
        """Declare that no more requests come: :meth:`run` ends once all are settled."""
        self._done.close()
        if self.outbox is not None:
            self.outbox.close()

    async def run(self, settlement: Settlement) -> None:
        """Make answers and have them settled, until :meth:`close`."""
        while done := await self._done.take(self._batch_max, max_size=self._max_size):
            self.unanswered.change(-sum(each.size for each in done))
            now = datetime.now(UTC)
            answers: list[Answer] = []
            size = 0
            for each in done:
                if each.size > LARGE:
                    await self._pace.turn()
                answers.append(self._answer(each, now))
                size += len(answers[-1].body)
                # Runs of one deployment share its parameters, and each record repeats them.
                if size > self._max_size:
                    await settlement.settle(answers)
                    answers, size = [], 0
            del done  # frees the runs
            if answers:
                await settlement.settle(answers)
            del answers  # their bodies are let go once they are confirmed
        await settlement.finish()
        self._session.consumer.acknowledger.close()

    def end(self) -> None:
        """Log the counts that wait for their line."""
        self._stored_log.close()

    def _take_one(
        self,
        request: Request,
        outcome: Decision,
        recorded: "asyncio.Future[None] | None",
        counted: set[int],
    ) -> None:
        delivery = request.delivery
        if isinstance(outcome, Refusal):
            self.refuse(delivery, outcome, request.size)
            return
        # Encoding an existing run may fail. Then its dead letter needs the body.
        if delivery.size > LARGE_BODY and isinstance(outcome, Created):
            delivery = delivery.without_body()
        size = request.size
        if isinstance(outcome, (Existing, Read)) or isinstance(request.new, UnresolvedRun):
            size += _added_size(outcome.run, counted)
        self._put(Done(delivery, outcome, size, recorded))

    def _put(self, done: Done) -> None:
        self.unanswered.change(done.size)
        self._done.put(done)

    def _answer(self, done: Done, now: datetime) -> Answer:
        outcome = done.outcome
        if not isinstance(outcome, Refusal):
            try:
                created, read = isinstance(outcome, Created), isinstance(outcome, Read)
                # Writing a record takes 5 us, so a run without a reply gets none. An existing run
                # may be one that can't be shown. Then it is refused.
                unread = (created or read) and not done.delivery.message.reply_to
                return Answer(
                    done.delivery,
                    201 if created else 200,
                    b"" if unread else encode_record(outcome.run, now),
                    run_id=outcome.run.id,
                    read=read,
                    recorded=done.recorded,
                )
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
            read=not kind_of(done.delivery.message.type).creates,
        )

    def _log(self, decided: Sequence[Decided], seconds: float) -> None:
        created, existing, read, refused = (
            sum(isinstance(outcome, kind) for _, outcome in decided)
            for kind in (Created, Existing, Read, Refusal)
        )
        self._stored_log.add(seconds, created=created, existing=existing, read=read, refused=refused)
        # Checked once a batch, since the check takes as long as making a log record.
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
        log.debug(
            "batch",
            created=created,
            existing=existing,
            read=read,
            refused=refused,
            ms=round(seconds * 1000, 1),
        )


def _added_size(run: FlowRun, counted: set[int]) -> int:
    """The memory that a run takes beyond its request, in bytes.

    Args:
        counted: ids of values that other runs of the batch share, such as a deployment's
            parameters. All of these runs are still held.
    """
    data = None if run.state is None else run.state.data
    values = (*run.parameters.values(), run.context, run.job_variables, data)
    new = [each for each in values if isinstance(each, (dict, list, str)) and id(each) not in counted]
    counted.update(map(id, new))
    return decoded_size(dumps(new)) if new else 0


def _record(outbox: Outbox, decided: Sequence[Decided]) -> "asyncio.Future[None] | None":
    """Record the events of a batch. All its deliveries wait some milliseconds for that."""
    return outbox.record(
        (outcome.run for _, outcome in decided if isinstance(outcome, Created)),
        (
            Found(outcome.run, request.delivery.redelivered)
            for request, outcome in decided
            if isinstance(outcome, Existing)
        ),
    )
