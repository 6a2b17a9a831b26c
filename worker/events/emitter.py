"""The emitter: takes events from the outbox and hands them to Prefect's API, one request at a time.
It serves no request, and disturbs none.

All workers of a queue have one, and the broker lets one of them consume at a time.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import orjson
import structlog
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from worker.backoff import Backoff
from worker.broker.connection import (
    BrokerRefused,
    BrokerUnavailable,
    ChannelLost,
    close_quietly,
    connect,
    lost_with,
)
from worker.broker.consumer import delivery_of
from worker.broker.publication import EVENTS_HEADER, refused_event
from worker.broker.publisher import Fate, Publisher
from worker.broker.session import ensure
from worker.broker.topology import Topology, TopologyMismatch
from worker.broker.transport import Connection
from worker.contract.encoding import dumps
from worker.events.api import APIAway, EventsRefused, PrefectAPI
from worker.mailbox import Mailbox
from worker.observability import metrics
from worker.settings import Settings

log = structlog.get_logger(__name__)

# Messages that are held at once. Each has one batch's events, and those of quiet times have one:
# so that many go together when the API comes back.
PREFETCH = 20
# And so many bytes of them go in one request, unless one message alone has more: nginx, which may
# stand before the API, takes a megabyte by default.
POST_BYTES = 512 * 1024
# Messages that the API does not take for so long go back to the outbox, before the broker's
# consumer timeout (30 minutes by default) closes the channel over them. Another worker may reach
# it. Seconds.
HOLD_SECONDS = 600.0
# How often the outbox is counted; seconds.
COUNT_SECONDS = 5.0
# A request that is under way may take so long to end when the worker stops; seconds.
STOP_SECONDS = 5.0


class _HandedBack(Exception):
    """The API was away for longer than messages can be held."""


class Emitter:
    """Hands over events until it is stopped, through every absence of the broker and of the API.

    Args:
        settings: of the broker, the API and the pace.
        topology: has the outbox.
    """

    def __init__(self, settings: Settings, topology: Topology) -> None:
        self._settings = settings
        self._topology = topology
        self._seconds_per_event = 1 / settings.prefect_events_per_second
        self._next_at = 0.0
        self._backoff = Backoff()
        self._stopping = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Let the request that is under way end, and leave; the rest stays in the outbox."""
        self._stopping.set()
        if self._running is not None:
            await asyncio.wait((self._running,), timeout=STOP_SECONDS)
            self._running.cancel()
            await asyncio.wait((self._running,), timeout=STOP_SECONDS)

    async def _run(self) -> None:
        backoff = Backoff()
        async with PrefectAPI(self._settings) as api:
            while not self._stopping.is_set():
                try:
                    await self._stay(api, backoff)
                except (BrokerUnavailable, BrokerRefused, TopologyMismatch, ChannelLost) as error:
                    self._wait_for_broker(error)
                except CONNECTION_EXCEPTIONS as error:
                    self._wait_for_broker(ChannelLost(error))
                except _HandedBack:
                    pass
                except Exception as error:  # the edge: requests are served whatever is wrong here
                    log.exception("emitter_failed")
                    metrics.events_held(repr(error))
                await backoff.sleep(self._stopping)

    def _wait_for_broker(self, error: Exception) -> None:
        log.warning("events_wait_for_broker", queue=self._topology.events_queue, error=str(error))
        metrics.events_held(f"the broker does not hand them out: {error}")

    async def _stay(self, api: PrefectAPI, backoff: Backoff) -> None:
        """Consume the outbox and hand over what comes, until the connection ends or we are to
        stop.
        """
        connection = await connect(
            self._settings.amqp_url, name="flow-run-worker events", connection_class=Connection
        )
        try:
            await ensure(self._topology, connection)
            stay = await _Stay.begin(connection, self._topology.events_queue)
            metrics.outbox_age.set_function(stay.age)
            metrics.outbox_messages.set_function(lambda: stay.count)
            stopping = asyncio.create_task(self._close_when_stopping(stay))
            counting = asyncio.create_task(stay.keep_count())
            metrics.events_held(None)
            backoff.reset()
            try:
                while messages := await stay.messages.take(PREFETCH, max_size=POST_BYTES):
                    await self._hand_over(api, stay, messages)
                    await stay.acknowledge(messages)
                if not self._stopping.is_set():
                    raise stay.lost
            finally:
                stopping.cancel()
                counting.cancel()
                metrics.outbox_age.set_function(lambda: 0.0)
                metrics.outbox_messages.set_function(lambda: 0.0)
        finally:
            await close_quietly(connection)

    async def _close_when_stopping(self, stay: "_Stay") -> None:
        await self._stopping.wait()
        await stay.cancel()

    async def _hand_over(
        self, api: PrefectAPI, stay: "_Stay", messages: Sequence[AbstractIncomingMessage]
    ) -> None:
        """Hand over messages together; where the API refuses them, their events in halves."""
        count = sum(_count(message) for message in messages)
        try:
            await self._post(api, stay, _joined(messages), count)
        except EventsRefused:
            for message in messages:
                await self._sift(api, stay, _events(message.body))

    async def _sift(self, api: PrefectAPI, stay: "_Stay", events: Sequence[bytes]) -> None:
        """Hand over events, down to each that the API refuses; it becomes a dead letter alone."""
        try:
            if events:
                await self._post(api, stay, b"[%b]" % b",".join(events), len(events))
        except EventsRefused as refused:
            half = len(events) // 2
            if half:
                await self._sift(api, stay, events[:half])
                await self._sift(api, stay, events[half:])
            else:
                await self._dead_letter(stay, events[0], refused)

    async def _post(self, api: PrefectAPI, stay: "_Stay", body: bytes, count: int) -> None:
        """Hand over events, as often as it takes.

        Raises:
            EventsRefused: it is in vain.
            ChannelLost: the messages are the broker's again, and another worker's.
            _HandedBack: it takes too long.
        """
        since = time.monotonic()
        while True:
            await asyncio.sleep(self._next_at - time.monotonic())
            self._next_at = max(self._next_at, time.monotonic()) + count * self._seconds_per_event
            try:
                await api.post_events(body)
            except APIAway as away:
                metrics.events_held(str(away))
                log.warning("events_held", error=str(away), tries=self._backoff.tries + 1, events=count)
                if time.monotonic() - since > HOLD_SECONDS:
                    raise _HandedBack from away
                await self._backoff.sleep(self._stopping)
                if stay.messages_are_lost or self._stopping.is_set():
                    raise stay.lost from away
            else:
                if self._backoff.tries:
                    log.info("events_go_on")
                self._backoff.reset()
                metrics.events_held(None)
                metrics.events_delivered(count)
                return

    async def _dead_letter(self, stay: "_Stay", event: bytes, refused: EventsRefused) -> None:
        """Keep an event that is refused where refused requests are; returns once it is there."""
        log.warning("event_refused", error=str(refused), content=event[:200].decode(errors="replace"))
        queue = self._topology.dead_letter_queue
        letter = refused_event(
            event, queue=queue, status=refused.status, error=str(refused), now=datetime.now(UTC)
        )
        confirmation = await stay.publisher.publish([letter])
        await confirmation.done
        if confirmation.fates[0] is not Fate.CONFIRMED:
            # Its message stays in the outbox, and is tried again.
            metrics.events_held(f"the queue '{queue}' does not take one that the API refuses")
            raise ChannelLost(f"the queue '{queue}' does not take a dead letter")
        metrics.event_refused()


class _Stay:
    """One stay at the outbox.

    Attributes:
        messages: what came in, until consuming has ended.
        publisher: for dead letters.
        lost: why the channel ended.
        count: messages in the outbox, with those that are held.
    """

    def __init__(
        self, connection: Connection, channel: AbstractChannel, queue: AbstractQueue, publisher: Publisher
    ) -> None:
        self.messages: Mailbox[AbstractIncomingMessage] = Mailbox(lambda message: len(message.body))
        self.publisher = publisher
        self.lost = ChannelLost("closed by the worker")
        self.messages_are_lost = False
        self.count = 0
        self._connection = connection
        self._channel = channel
        self._queue = queue
        # When each that is held was published, in seconds since 1970, by its tag.
        self._held: dict[int, float] = {}
        self._tag: str | None = None

    @classmethod
    async def begin(cls, connection: Connection, queue: str) -> "_Stay":
        """Consume.

        Raises:
            ChannelLost: the broker does not let us.
        """
        channel = await connection.channel(publisher_confirms=False)
        with lost_with(channel):
            outbox = await channel.get_queue(queue, ensure=False)
        stay = cls(connection, channel, outbox, Publisher(connection, await connection.channel()))
        channel.close_callbacks.add(stay._closed)
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(stay._cancelled)
        with lost_with(channel):
            await channel.set_qos(PREFETCH)
            stay._tag = await outbox.consume(stay._came)
        return stay

    def age(self) -> float:
        """The age of the oldest event that waits, in seconds; 0 if none does."""
        return max(0.0, time.time() - next(iter(self._held.values()))) if self._held else 0.0

    async def keep_count(self) -> None:
        """Count what is in the outbox, every few seconds."""
        while True:
            with suppress(ChannelLost):
                with lost_with(self._channel):
                    declared = (await self._channel.get_queue(self._queue.name)).declaration_result
                self.count = (declared.message_count or 0) + len(self._held)
            await asyncio.sleep(COUNT_SECONDS)

    async def acknowledge(self, messages: Sequence[AbstractIncomingMessage]) -> None:
        """Take messages out of the outbox: all that came up to the last of these."""
        with lost_with(self._channel):
            await messages[-1].ack(multiple=True)
        for message in messages:
            self._held.pop(message.delivery_tag or 0, None)

    async def cancel(self) -> None:
        """Consume no more."""
        with suppress(ChannelLost), lost_with(self._channel):
            if self._tag is not None:
                await self._queue.cancel(self._tag)
        self.messages.close()

    async def _came(self, incoming: AbstractIncomingMessage) -> None:
        delivery_of(incoming, self._connection.frames, self._channel)  # its properties are not kept
        published = incoming.timestamp
        self._held[incoming.delivery_tag or 0] = published.timestamp() if published else time.time()
        self.messages.put(incoming)

    async def _closed(self, _: object, error: BaseException | None) -> None:
        self._end(ChannelLost(error))

    def _cancelled(self, _: object) -> None:
        self._end(ChannelLost("the broker cancelled the consumer: its queue was deleted or moved"))

    def _end(self, reason: ChannelLost) -> None:
        self.lost = reason
        self.messages_are_lost = True
        self.messages.close()


def _count(message: AbstractIncomingMessage) -> int:
    count = message.headers.get(EVENTS_HEADER)
    return count if isinstance(count, int) and count > 0 else 1


def _joined(messages: Sequence[AbstractIncomingMessage]) -> bytes:
    """The events of all messages as one JSON list."""
    if len(messages) == 1:
        return messages[0].body
    return b"[%b]" % b",".join(message.body[1:-1] for message in messages)


def _events(body: bytes) -> list[bytes]:
    """The events of a message, each as JSON; what is no list counts as one."""
    try:
        events = orjson.loads(body)
    except orjson.JSONDecodeError:
        return [body]
    return [dumps(event) for event in events] if isinstance(events, list) else [body]
