"""One stay at the broker: two connections, the topology, a consumer, a publisher; knows nothing of
requests and of the database.

Whatever lets go (``basic.cancel`` because the queue was deleted, the channel, a connection) ends
the session. There is one way on from there: open another. What was in flight is delivered again by
the broker.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import unquote

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq.exceptions import ChannelAccessRefused

from worker.broker.acknowledger import Acknowledger
from worker.broker.connection import (
    BrokerRefused,
    BrokerUnavailable,
    ChannelLost,
    close_connection,
    connect,
    lost_with,
)
from worker.broker.delivery import Delivery
from worker.broker.direct_reply import DirectReplies
from worker.broker.fast_path import BulkPublisher, DeliveryReader
from worker.broker.in_flight import InFlight
from worker.broker.properties import read_message
from worker.broker.publisher import Publisher
from worker.broker.topology import Topology, TopologyMismatch
from worker.broker.transport import Connection
from worker.mailbox import Mailbox

log = structlog.get_logger(__name__)

# A quorum queue that has no leader yet, as after the broker was killed, keeps whoever declares or
# consumes it waiting (for 65 seconds and an INTERNAL_ERROR in RabbitMQ 3.10); a new session is
# served as soon as it has one. Seconds.
QUEUE_TIMEOUT = 10.0
# Bytes of deliveries that are held at the most, unless it is said otherwise; the worker's size is
# in tests/benchmarks/memory.py.
PREFETCH_SIZE = 64 * 1024 * 1024
# As RabbitMQ 4 has it by default, in bytes; RabbitMQ 3 has more.
MAX_MESSAGE_SIZE = 16 * 1024 * 1024
# Both connections, the topology and all; seconds. Each connection has a limit of its own.
OPEN_TIMEOUT = 30.0
# A consumer that has room, and to which nothing came for so long, has an empty queue; seconds. A
# guess.
IDLE_SECONDS = 0.05
# A request that came back so often may be what ends the worker's process. It is served alone (see
# Session.consume), so that the others don't use up their delivery limit with it.
SUSPECT_DELIVERY_COUNT = 3


class Session:
    """A consumer and a publisher, each on a connection of its own.

    Made by :meth:`open`; ends by :meth:`close` or by itself, which :attr:`lost` tells.

    Attributes:
        topology: what was declared.
        in_flight: what was delivered and is not acknowledged, in bytes.
        deliveries: what came in. Closed when the session is lost or consuming has stopped.
        publisher: for replies and dead letters.
        acknowledger: for the deliveries.
        direct_replies: which direct reply-to names can be published to.
        blocked: why the broker takes no publications (an alarm), such as ``low on memory``; None
            while it does.
        on_blocked: is called with the reason when the broker takes no publications any more (an
            alarm), and with None when it does again.
        lost: done once the session has ended; its result is the reason.
        max_message_size: what the broker takes in a message, in bytes, as far as it is known.
        consumed: whether the broker has let us consume.
        answered: whether a delivery was answered, so that no right was missing then.
        prefetch: how many deliveries the broker lets be unacknowledged by now; 0 when no more are
            taken.
    """

    def __init__(
        self, urls: str, topology: Topology, name: str, *, fast_path: bool, prefetch_size: int
    ) -> None:
        self.topology = topology
        self.deliveries: Mailbox[Delivery] = Mailbox(lambda delivery: delivery.size)
        self.in_flight = InFlight(prefetch_size, self._pause_reading, self._resume_reading)
        self.lost: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        self.blocked: str | None = None
        self.on_blocked: Callable[[str | None], None] = lambda reason: None
        self.max_message_size = MAX_MESSAGE_SIZE
        self.consumed = False
        self.answered = False
        self.prefetch = 0
        self.direct_replies = DirectReplies(urls, f"{name} direct reply")
        self.publisher: Publisher
        self.acknowledger: Acknowledger
        self._urls = urls
        self._name = name
        self._fast_path = fast_path
        self._connections: list[Connection] = []
        self._channel: AbstractChannel
        self._queue: aio_pika.abc.AbstractQueue
        self._consumer_tag: str | None = None
        self._changing = asyncio.Lock()
        # The latest delivery's tag, and the first that the consumer of now could have.
        self._last_tag = 0
        self._first_tag = 1
        self._full_prefetch = 0
        self._changing_for_sizes = False
        self._patience: asyncio.Timeout | None = None
        self._calm = asyncio.Event()
        self._stopped = False

    @classmethod
    async def open(
        cls,
        urls: str,
        topology: Topology,
        *,
        name: str,
        fast_path: bool = True,
        prefetch_size: int = PREFETCH_SIZE,
        max_message_size: int = MAX_MESSAGE_SIZE,
        try_out: bool = False,
    ) -> "Session":
        """Connect and declare the topology.

        Args:
            urls: ``amqp://`` or ``amqps://`` URL, or several that are separated by commas; TLS
                files and heartbeat in the query as aiormq takes them.
            topology: what to declare.
            name: the connections' name as the management UI shows it.
            fast_path: see :mod:`worker.broker.fast_path`.
            prefetch_size: bytes of deliveries that are held at the most; one more is let in.
            max_message_size: bytes that the broker takes in a message, as far as one knows.
            try_out: publish something to nobody, and consume, first. For who was let in before: a
                right that is missing for a while is not to cost deliveries that could not be
                answered, and is to be told as what it is.

        Raises:
            BrokerUnavailable: nobody answers, or not in time.
            BrokerRefused: login, virtual host or permission refused.
            TopologyMismatch: something stands there under these names with other properties.
        """
        session = cls(urls, topology, name, fast_path=fast_path, prefetch_size=prefetch_size)
        session.max_message_size = max_message_size
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                await session._open()
                if try_out:
                    await session.publisher.try_out()
                    await session._change_consumer(1)
        except BaseException as error:
            await session.close()
            if isinstance(error, (BrokerUnavailable, BrokerRefused, TopologyMismatch)):
                raise
            if isinstance(error, ChannelLost) and error.refused:
                raise BrokerRefused(f"The broker refuses what the worker needs: {error}") from error
            if isinstance(error, TimeoutError):
                reason = f"The broker does not answer for the queue '{topology.queue}'"
                raise BrokerUnavailable(reason) from error
            # A bare Exception is aiormq's: of what was under way when the connection ended.
            if isinstance(error, CONNECTION_EXCEPTIONS) or type(error) is Exception:
                reason = f"The broker closed the connection: {ChannelLost(error)}"
                raise BrokerUnavailable(reason) from error
            raise
        return session

    async def _open(self) -> None:
        consuming = await self._connect(self._name)
        await ensure(self.topology, consuming)
        self._channel = await consuming.channel(publisher_confirms=False)
        self._queue = await self._channel.get_queue(self.topology.queue, ensure=False)
        underlay = await self._channel.get_underlay_channel()
        publishing = await self._connect(f"{self._name} replies")
        publishing.frames.on_blocked = self._blocked
        channel = await publishing.channel(publisher_confirms=True)
        self.publisher = (BulkPublisher if self._fast_path else Publisher)(publishing, channel)
        self.acknowledger = Acknowledger(underlay, lambda: self.prefetch)
        if self._fast_path:
            reader = DeliveryReader(consuming.frames, underlay.number, self._delivered)
            consuming.frames.channels[underlay.number] = reader
        underlay.on_consumer_cancel_callbacks.add(self._consumer_cancelled)
        self._channel.close_callbacks.add(self._closed)
        channel.close_callbacks.add(self._closed)
        for connection in self._connections:
            connection.close_callbacks.add(self._closed)

    async def _connect(self, name: str) -> Connection:
        connection = await connect(self._urls, name=name, connection_class=Connection)
        self._connections.append(connection)
        return connection

    @property
    def login(self) -> str | None:
        """The user that publishes (publications may carry this ``user_id`` and no other)."""
        user = self._connections[-1].url.user
        return unquote(user) if user else None

    async def consume(self, prefetch: int) -> None:
        """Consume, with at most ``prefetch`` deliveries unacknowledged; returns once that many are
        let in, or none any more.

        Begins with one at a time, and goes on so while requests come that were delivered too often
        before: one of them may be what ended the worker that had it, and the broker counts that
        against all that were in flight.

        Raises:
            ChannelLost: the session ended.
        """
        if self._consumer_tag is None:
            await self._change_consumer(1)
        if prefetch > 1:
            await self._calm.wait()
            self._full_prefetch = prefetch
            await self._change_consumer(self.in_flight.fitting(prefetch))

    async def renew_consumer(self) -> None:
        """Consume with as much prefetch again: what is unacknowledged by now counts for it no more.

        Raises:
            ChannelLost: the session ended.
        """
        await self._change_consumer(self.prefetch)

    async def stop_consuming(self) -> None:
        """Cancel the consumer. What was delivered until then stays in :attr:`deliveries`, which is
        closed behind it.

        Raises:
            ChannelLost: the session ended.
        """
        self._stopped = True
        self._calm.set()
        await self._change_consumer(0)
        self.deliveries.close()

    async def _change_consumer(self, prefetch: int) -> None:
        """Put a consumer with this prefetch (none: 0) in the place of the one before; it is set for
        good when one begins.

        One change at a time, and none is cancelled half way: aiormq closes the channel then.
        """
        async with self._changing:
            if self.lost.done():
                raise self.lost.result()
            tag, self._consumer_tag = self._consumer_tag, None
            try:
                seconds = None if self.in_flight.paused else QUEUE_TIMEOUT
                async with asyncio.timeout(seconds) as self._patience:
                    with lost_with(self._channel), self.acknowledger.held_back():
                        if tag is not None:
                            await self._nothing_on_its_way()
                            await self._queue.cancel(tag)
                        self.prefetch = 0 if self._stopped else prefetch
                        if self.prefetch:
                            await self._channel.set_qos(prefetch_count=self.prefetch)
                            self._first_tag = self._last_tag + 1
                            self._consumer_tag = await self._queue.consume(self._came)
                            self.consumed = True
            except TimeoutError as error:
                raise ChannelLost(
                    f"the broker does not answer for the queue '{self.topology.queue}'"
                ) from error
            finally:
                self._patience = None

    async def _nothing_on_its_way(self) -> None:
        """Wait until the consumer has as much as it may have, or nothing comes any more.

        A quorum queue takes back what is on its way to a consumer that is cancelled, and counts it
        as delivered.
        """
        last = -1
        while self._last_tag != last and not self.lost.done():
            last = self._last_tag
            has = last - self._first_tag + 1 - self.acknowledger.written_since(self._first_tag)
            if has >= self.prefetch:
                return
            await asyncio.sleep(IDLE_SECONDS)

    def acknowledge(self, deliveries: Sequence[Delivery], *, rejected: bool = False) -> None:
        """Have deliveries acknowledged that are settled, each only once; or rejected, so that the
        broker moves them to the dead letters itself.
        """
        self.answered = True
        tags = [delivery.tag for delivery in deliveries]
        self.acknowledger.acknowledge(tags, rejected=rejected)
        self.in_flight.remove(tags)
        self._follow_sizes()

    def _follow_sizes(self) -> None:
        """Let in as many deliveries as fit, when that has changed by more than a little."""
        fitting = self.in_flight.fitting(self._full_prefetch)
        changed = not self.prefetch / 2 < fitting < self.prefetch * 2 or (
            fitting == self._full_prefetch != self.prefetch
        )
        if changed and self._full_prefetch and not (self._changing_for_sizes or self.in_flight.paused):
            self._changing_for_sizes = True
            changing = asyncio.create_task(self._change_consumer(fitting))
            changing.add_done_callback(self._followed_sizes)

    def _followed_sizes(self, changing: "asyncio.Task[None]") -> None:
        self._changing_for_sizes = False
        if not changing.cancelled():
            changing.exception()  # the session's end is told by itself

    def _pause_reading(self) -> None:
        self._connections[0].frames.pause_reading()
        # What the broker answers comes behind what is not read.
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(None)

    def _resume_reading(self) -> None:
        self._connections[0].frames.resume_reading()
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time() + QUEUE_TIMEOUT)

    def raise_if_lost(self, lost: ChannelLost) -> ChannelLost:
        """Raise why another channel ended, unless the broker closed that one alone. (For want of a
        permission it would close each.)
        """
        if self.lost.done() or lost.refused or not lost.closed_over:
            raise lost
        return lost

    @asynccontextmanager
    async def another_publisher(self) -> AsyncIterator[Publisher]:
        """A publisher on a channel that is open for so long.

        Raises:
            ChannelLost: the session ended, or this channel did.
        """
        channel: AbstractChannel = self._connections[-1].channel(publisher_confirms=True)
        with lost_with(channel):
            await channel.initialize()
        try:
            yield Publisher(self._connections[-1], channel)
        finally:
            with suppress(Exception):  # it may be closed already
                await channel.close()

    async def redeclare(self) -> None:
        """Declare the topology again: a queue of it is missing.

        Raises:
            ChannelLost: the session ended.
            TopologyMismatch: it can't be.
        """
        with lost_with(self._channel):
            await ensure(self.topology, self._connections[0])

    async def close(self) -> None:
        """Close the connections; the broker requeues what was not acknowledged."""
        await asyncio.gather(*(close_connection(connection) for connection in self._connections))
        self._end(ChannelLost("closed by the worker"))

    async def _came(self, incoming: AbstractIncomingMessage) -> None:
        """aio-pika's way for deliveries, where the fast path does not take them."""
        assert incoming.delivery_tag is not None
        frames = self._connections[0].frames
        properties = frames.properties.pop((self._channel.number or 0, incoming.delivery_tag))
        message = read_message(properties, incoming.body, redelivered=bool(incoming.redelivered))
        self._delivered(Delivery(incoming.delivery_tag, message))

    def _delivered(self, delivery: Delivery) -> None:
        if delivery.delivery_count < SUSPECT_DELIVERY_COUNT:
            self._calm.set()
        self._last_tag = delivery.tag
        self.in_flight.add(delivery.tag, delivery.size)
        self.deliveries.put(delivery)

    async def _closed(self, _: object, error: BaseException | None) -> None:
        self._end(ChannelLost(error))

    def _consumer_cancelled(self, _: object) -> None:
        self._end(ChannelLost("the broker cancelled the consumer: its queue was deleted or moved"))

    def _blocked(self, reason: str | None) -> None:
        self.blocked = reason
        self.on_blocked(reason)

    def _end(self, reason: ChannelLost) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
        self.deliveries.close()


async def ensure(topology: Topology, connection: aio_pika.Connection) -> None:
    """Declare the topology or, as a user who may not, see that it stands.

    Raises:
        TopologyMismatch: it stands otherwise, or doesn't and may not be declared.
    """
    channel = await connection.channel()
    try:
        await topology.declare(channel)
    except ChannelAccessRefused as refused:
        channel = await connection.channel()
        await topology.check(channel, refused)
    await channel.close()
