"""The emitter: takes events from the outbox and sends them to Prefect's API, and waits whenever the
broker or the API is down. It neither serves nor disturbs requests.

Each worker of a queue has one. The broker lets one of them consume at a time.
"""

import asyncio
from functools import partial

from worker.broker.stay import Place, Stay
from worker.broker.topology import Topology
from worker.events.api import PrefectAPI
from worker.events.hand_over import PREFETCH, HandOver
from worker.events.patience import PATIENCE, Patience
from worker.observability import metrics
from worker.settings import Settings
from worker.tasks.beside import Beside


class Emitter(Beside):
    """Consumes the outbox until it is stopped. Then other events stay there.

    Args:
        settings: the broker, the API and the rate.
        topology: the queues, with the outbox.
        patience: with the API.
    """

    def __init__(self, settings: Settings, topology: Topology, patience: Patience = PATIENCE) -> None:
        super().__init__(patience.stop)
        self._settings = settings
        self._patience = patience
        self._outbox = Place(
            settings.amqp_url,
            topology,
            topology.events_queue,
            name="flow-run-worker events",
            prefetch=PREFETCH,
            stopping=self._stopping,
            on_lost=metrics.events_held,
        )

    async def _run(self) -> None:
        async with PrefectAPI(self._settings, self._patience.answer) as api:
            hand_over = HandOver(api, self._settings, self._stopping, self._patience)
            await self._outbox.keep(partial(self._serve, hand_over))

    async def _serve(self, hand_over: HandOver, stay: Stay) -> None:
        """Send the events of one stay at the outbox."""
        metrics.outbox_age.set_function(stay.age)
        metrics.outbox_messages.set_function(lambda: stay.count)
        counting = asyncio.create_task(stay.keep_count(self._patience.count))
        metrics.events_held(None)
        try:
            await hand_over.serve(stay)
        finally:
            counting.cancel()
            metrics.outbox_age.set_function(lambda: 0.0)
            metrics.outbox_messages.set_function(lambda: 0.0)
