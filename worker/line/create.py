"""The stage that has runs created: batch by batch, and again what the database leaves undecided.

A request waits beside the line if the reason is its own: a lock, a check, or a row that the
database refuses. All requests wait only while the database takes nothing at all.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic

import structlog

from worker.contract.errors import DeploymentMissing, Fault, Unprocessable
from worker.line.patience import Patience
from worker.line.values import Decided, Request
from worker.observability import metrics
from worker.observability.traces import Traces
from worker.runs.creation import Requested
from worker.store import Outcome, Store, Undecided
from worker.tasks.backoff import Backoff
from worker.tasks.budget import Budget
from worker.tasks.isolate import Failed, isolate
from worker.tasks.mailbox import Mailbox

log = structlog.get_logger(__name__)


class DatabaseAway(Exception):
    """The database stayed away for longer than deliveries can be held."""


class Create:
    """Takes requests, has their runs created, and passes on the outcomes.

    Args:
        store: where runs are kept.
        traces: has a span for each batch.
        batch_max: requests in one batch at most.
        max_size: what a batch takes in memory at most, in bytes as ``Request.size`` counts.
        pass_on: gets the decided requests, and the seconds that the batch took.
        unanswered: the bytes in front of the next stage.
        patience: with the database.

    Attributes:
        undecided: the bytes of the requests in this stage: in front of the store, in it, and beside
            the line.
    """

    def __init__(
        self,
        store: Store,
        traces: Traces,
        *,
        batch_max: int,
        max_size: int,
        pass_on: Callable[[Sequence[Decided], float], None],
        unanswered: Budget,
        patience: Patience,
    ) -> None:
        # A request that failed before fills a batch of its own, so that no other fails with it.
        self._requests: Mailbox[Request] = Mailbox(lambda each: max_size if each.tries else each.size)
        self.undecided = Budget(2 * max_size)  # the next batch waits while one is in the store
        self._store = store
        self._traces = traces
        self._batch_max = self._limit = batch_max
        self._max_size = max_size
        self._pass_on = pass_on
        self._unanswered = unanswered
        self._patience = patience
        self._aside = 0
        self._closing = False
        self._busy = False
        self._backoff = Backoff()
        self._faults = 0
        self._away_since: float | None = None
        self._written = 0

    def take(self, request: Request) -> None:
        """Take a request."""
        self.undecided.change(request.size)
        self._requests.put(request)

    def close(self) -> None:
        """Declare that no new request comes: :meth:`run` ends once all are decided."""
        self._closing = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._closing and not (self._aside or self._busy or len(self._requests)):
            self._requests.close()

    async def run(self) -> None:
        """Create the runs of requests until :meth:`close`.

        Raises:
            DatabaseAway: it took nothing for ``patience.database`` seconds.
            DeploymentMissing: that of plain messages. Deliveries are not held for it.
        """
        while requests := await self._requests.take(self._limit, max_size=self._max_size):
            self._busy = True
            started = monotonic()
            with self._traces.batch([request.delivery for request in requests]):
                outcomes = await self._outcomes([request.new for request in requests])
            decided, undecided = _sorted(requests, outcomes)
            fault = self._give_again(decided, undecided) if undecided else None
            if decided:
                if fault is None:
                    self._database_takes_runs()
                self.undecided.change(-sum(request.size for request, _ in decided))
                self._pass_on(decided, monotonic() - started)
            del outcomes, decided  # free them before the next wait
            if fault is not None:
                await self._wait_out(fault, len(requests))
            del requests
            self._busy = False
            self._close_if_done()
            await self._unanswered.room()

    async def _outcomes(self, runs: Sequence[Requested]) -> Sequence[Outcome]:
        """Create runs. An unforeseen error blames single runs, which are found by halves."""
        try:
            return await self._store.create(runs)
        except DeploymentMissing:
            raise
        except Fault as fault:
            return [Undecided(str(fault), ended=fault.ended)] * len(runs)
        except Exception:  # the edge
            results = await isolate(runs, self._store.create, stop=Fault)
        return [
            await self._store.undecided(each.error) if isinstance(each, Failed) else each for each in results
        ]

    def _give_again(
        self, decided: list[Decided], undecided: Sequence[tuple[Request, Undecided]]
    ) -> str | None:
        """Schedule undecided requests to be given again. Those refused for good join ``decided``.

        Returns:
            The fault of the database that all requests must wait for.
        """
        alone = len(undecided) == 1 and not decided
        well = bool(decided) or any(outcome.blamed for _, outcome in undecided)
        fault = None
        for request, outcome in undecided:
            if outcome.ready is not None:
                self._aside += 1
                outcome.ready.add_done_callback(partial(self._return_when_ready, request))
            elif well and outcome.refusal is not None:
                self._try_again(request, outcome, decided)
            elif alone and outcome.ended and self._written > request.written:
                self._try_again(replace(request, written=self._written), self._of_fault(outcome), decided)
                fault = None if decided else outcome.reason
            else:
                fault = fault or outcome.reason
                self._requests.put(request)
        return None if well else fault

    def _try_again(self, request: Request, outcome: Undecided, decided: list[Decided]) -> None:
        """Have a request given again after a pause, or refused after its last try."""
        request = replace(request, tries=request.tries + 1)
        assert outcome.refusal is not None
        if request.tries >= outcome.tries:
            decided.append((request, outcome.refusal))
            return
        message = request.delivery.message
        log.warning(
            "run_tried_again",
            error=outcome.reason,
            tries=request.tries,
            message_id=message.message_id,
            correlation_id=message.correlation_id,
        )
        self._aside += 1
        pause = Backoff(tries=request.tries - 1).next_delay()
        asyncio.get_running_loop().call_later(pause, self._return, request)

    def _of_fault(self, outcome: Undecided) -> Undecided:
        """The outcome with the refusal that the run gets if the database keeps failing over it."""
        reason = f"The database fails over this run: {outcome.reason}"
        return replace(outcome, refusal=Unprocessable(reason), tries=self._patience.fault_tries)

    def _return_when_ready(self, request: Request, _: "asyncio.Future[None]") -> None:
        self._return(request)

    def _return(self, request: Request) -> None:
        self._aside -= 1
        self._requests.put(request)

    def _database_takes_runs(self) -> None:
        metrics.database_here()
        self._written += 1
        self._faults, self._away_since = 0, None
        self._backoff.reset()
        self._limit = min(2 * self._limit, self._batch_max)

    async def _wait_out(self, fault: str, held: int) -> None:
        """Wait until the database writes, or may write other runs than these."""
        self._away_since = self._away_since or monotonic()
        self._faults += 1
        if self._faults >= self._patience.faults_together:
            self._limit = max(1, min(self._limit, held) // 2)
        while True:
            metrics.database_away(fault)
            log.warning("database_away", error=fault, tries=self._backoff.tries + 1, held=held + self._aside)
            if monotonic() - self._away_since > self._patience.database:
                raise DatabaseAway(fault)
            await self._backoff.sleep()
            try:
                if await self._store.writes():
                    self._written += 1
                    metrics.database_here()
                return
            except Fault as error:
                fault = str(error)


def _sorted(
    requests: Sequence[Request], outcomes: Sequence[Outcome]
) -> tuple[list[Decided], list[tuple[Request, Undecided]]]:
    """Split requests by their outcomes into decided and undecided ones."""
    decided: list[Decided] = []
    undecided: list[tuple[Request, Undecided]] = []
    for request, outcome in zip(requests, outcomes, strict=True):
        if isinstance(outcome, Undecided):
            undecided.append((request, outcome))
        else:
            decided.append((request, outcome))
    return decided, undecided
