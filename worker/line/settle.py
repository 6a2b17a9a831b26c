"""The end of the line: acknowledges each delivery once the broker has its whole answer. No other
module settles a delivery. It knows no database.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from time import monotonic

from worker.broker.session import Session
from worker.line.patience import PATIENCE, Patience
from worker.line.pending import Pending, pending_of
from worker.line.publish import Publishing
from worker.line.values import Answer
from worker.observability import metrics
from worker.observability.traces import Traces


class Settlement:
    """Has answers published, and their deliveries acknowledged.

    Args:
        session: of the deliveries and the answers.
        tasks: runs everything that waits for the broker. A failure there ends the whole session.
        traces: notes when replies go out and when they are settled.
        prefetch: the full prefetch, which a session reaches after its first deliveries.
        patience: with the broker.
    """

    def __init__(
        self,
        session: Session,
        tasks: asyncio.TaskGroup,
        traces: Traces,
        *,
        prefetch: int,
        patience: Patience = PATIENCE,
    ) -> None:
        self._session = session
        self._traces = traces
        self._open = 0
        self._all_settled = asyncio.Event()
        self._publishing = Publishing(
            session, tasks, self._settle_recorded, prefetch=prefetch, patience=patience
        )
        self._running = tasks.create_task(self._publishing.run())

    async def settle(self, answers: Sequence[Answer]) -> None:
        """Publish the answers. Waits first until earlier answers leave room.

        Raises:
            ChannelLost: the session ended. All their requests will be delivered again.
        """
        await self._session.consumer.in_flight.answers.room(sum(len(answer.body) for answer in answers))
        self._open += len(answers)
        all_pending = [pending_of(self._session, answer, self._traces) for answer in answers]
        if unanswered := [each for each in all_pending if not each.left]:
            self._settle_recorded(unanswered)
        await self._publishing.publish(all_pending)

    async def finish(self) -> None:
        """Wait until all answers are settled."""
        if self._open:
            self._all_settled.clear()
            await self._all_settled.wait()
        self._running.cancel()

    def _settle_recorded(self, done: Sequence[Pending]) -> None:
        """Settle each delivery once its event is in the outbox. The reply did not wait for that."""
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
        self._open -= len(settled)
        if not self._open:
            self._all_settled.set()
