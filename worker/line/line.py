"""The line from queue to acknowledgement. It joins the stages, and broker and store with them.

Each stage is a task, and takes all that the stage before has put out. So batches form by
themselves. While one commits, the next is decoded, and the replies of the last are being confirmed.
"""

import asyncio

from worker.broker.session import Session
from worker.events.outbox import Outbox
from worker.line.answer import Answering
from worker.line.create import Create
from worker.line.patience import PATIENCE, Patience
from worker.line.settle import Settlement
from worker.line.understand import Understand
from worker.observability.traces import Traces
from worker.settings import Settings
from worker.store import Store

# Limit of decoded requests in front of the store, in it, and behind it, as a share of
# WORKER_PREFETCH_SIZE each. decode.decoded_size estimates their memory: 25 MB for a megabyte of
# empty lists.
DECODED_SHARE = 3 / 8
# Limit of the runs whose records are written at one time. The records' bytes come on top.
SETTLED_SHARE = 1 / 8


class Pipeline:
    """Serves the deliveries of one session until they end."""

    def __init__(
        self,
        session: Session,
        store: Store,
        settings: Settings,
        traces: Traces,
        patience: Patience = PATIENCE,
    ) -> None:
        self._session = session
        self._store = store
        self._settings = settings
        self._traces = traces
        self._patience = patience
        max_decoded = int(settings.prefetch_size * DECODED_SHARE)
        self._answering = Answering(
            session,
            batch_max=settings.batch_max,
            max_decided=max_decoded,
            max_size=int(settings.prefetch_size * SETTLED_SHARE),
            pace=store.pace,
        )
        self._creating = Create(
            store,
            traces,
            batch_max=settings.batch_max,
            max_size=max_decoded,
            pass_on=self._answering.take,
            unanswered=self._answering.unanswered,
            patience=patience,
        )
        self._understanding = Understand(
            session, settings, traces, self._creating, self._answering, store.pace
        )

    async def run(self) -> None:
        """Consume and serve until the session's deliveries end and all that were taken are
        acknowledged.

        Raises:
            ExceptionGroup: of :class:`ChannelLost` (the session ended, and the broker delivers
                again), :class:`DatabaseAway` or :class:`DeploymentMissing`.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                if self._session.topology.events:
                    self._answering.outbox = Outbox(self._session, self._store, tasks)
                    tasks.create_task(self._answering.outbox.run())
                tasks.create_task(self._session.consumer.consume(self._settings.prefetch))
                tasks.create_task(self._understanding.run())
                tasks.create_task(self._create())
                settlement = Settlement(
                    self._session,
                    tasks,
                    self._traces,
                    prefetch=self._settings.prefetch,
                    patience=self._patience,
                )
                tasks.create_task(self._answering.run(settlement))
                tasks.create_task(self._session.consumer.acknowledger.run())
        finally:
            self._answering.end()

    async def _create(self) -> None:
        await self._creating.run()
        self._answering.close()
