"""The emitter: takes events from the outbox and sends them to Prefect's API, and waits whenever the
broker or the API is down. It neither serves nor disturbs requests.

Each worker of a queue has one. The broker lets one of them consume at a time.
"""

import asyncio

import structlog
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from worker.amqp.transport import Connection
from worker.broker.connection import (
    BrokerRefused,
    BrokerUnavailable,
    ChannelLost,
    close_quietly,
    connect,
    lost_with,
)
from worker.broker.topology import Topology, TopologyMismatch
from worker.events.api import PrefectAPI
from worker.events.hand_over import HandedBack, HandOver
from worker.events.patience import PATIENCE, Patience
from worker.events.stay import Stay
from worker.observability import metrics
from worker.settings import Settings
from worker.tasks.backoff import Backoff
from worker.tasks.ending import end

log = structlog.get_logger(__name__)


class Emitter:
    """Consumes the outbox until it is stopped.

    Args:
        settings: the broker, the API and the rate.
        topology: the queues, with the outbox.
        patience: with the API.
    """

    def __init__(self, settings: Settings, topology: Topology, patience: Patience = PATIENCE) -> None:
        self._settings = settings
        self._topology = topology
        self._patience = patience
        self._stopping = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Wait for the current request, then stop. Other events stay in the outbox."""
        self._stopping.set()
        if self._running is not None:
            await end(self._running, self._patience.stop)

    async def _run(self) -> None:
        backoff = Backoff()
        async with PrefectAPI(self._settings, self._patience.answer) as api:
            hand_over = HandOver(api, self._settings, self._stopping, self._patience)
            while not self._stopping.is_set():
                try:
                    await self._stay(hand_over, backoff)
                except (BrokerUnavailable, BrokerRefused, TopologyMismatch, ChannelLost) as error:
                    self._wait_for_broker(error)
                except CONNECTION_EXCEPTIONS as error:
                    self._wait_for_broker(ChannelLost(error))
                except HandedBack:
                    pass
                except Exception as error:  # the edge: an error here must not stop the worker
                    log.exception("emitter_failed")
                    metrics.events_held(repr(error))
                await backoff.sleep(self._stopping)

    def _wait_for_broker(self, error: Exception) -> None:
        log.warning("events_wait_for_broker", queue=self._topology.events_queue, error=str(error))
        metrics.events_held(f"the broker does not hand them out: {error}")

    async def _stay(self, hand_over: HandOver, backoff: Backoff) -> None:
        """Consume the outbox and send its events, until the connection ends or the worker stops."""
        connection = await connect(
            self._settings.amqp_url, name="flow-run-worker events", connection_class=Connection
        )
        try:
            with lost_with(connection):
                await self._topology.ensure(connection)
                stay = await Stay.begin(connection, self._topology.events_queue)
            metrics.outbox_age.set_function(stay.age)
            metrics.outbox_messages.set_function(lambda: stay.count)
            stopping = asyncio.create_task(self._close_when_stopping(stay))
            counting = asyncio.create_task(stay.keep_count(self._patience.count))
            metrics.events_held(None)
            try:
                await hand_over.serve(stay)
                if not self._stopping.is_set():
                    raise stay.lost
            finally:
                stopping.cancel()
                counting.cancel()
                if stay.acknowledged:
                    backoff.reset()
                metrics.outbox_age.set_function(lambda: 0.0)
                metrics.outbox_messages.set_function(lambda: 0.0)
        finally:
            await close_quietly(connection)

    async def _close_when_stopping(self, stay: Stay) -> None:
        await self._stopping.wait()
        await stay.cancel()
