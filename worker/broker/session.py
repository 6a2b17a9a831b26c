"""One stay at the broker: two connections, the topology, a consumer, a publisher; knows nothing of
requests and of the database.

Whatever lets go (``basic.cancel`` because the queue was deleted, the channel, a connection) ends
the session. There is one way on from there: open another. What was in flight is delivered again by
the broker.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from worker.broker.connection import (
    BrokerRefused,
    BrokerUnavailable,
    ChannelLost,
    PublishersBlocked,
    close_quietly,
    connect,
    lost_with,
)
from worker.broker.consumer import Consumer
from worker.broker.direct_reply import DirectReplies
from worker.broker.fast_path import BulkPublisher, DeliveryReader
from worker.broker.in_flight import PREFETCH_SIZE
from worker.broker.publisher import Publisher
from worker.broker.size_limit import SizeLimit
from worker.broker.topology import Topology, TopologyMismatch
from worker.broker.transport import Connection
from worker.contract.message import MAX_MESSAGE_SIZE

# Both connections, the topology and all; seconds. Each connection has a limit of its own.
OPEN_TIMEOUT = 30.0


class Session:
    """A consumer and a publisher, each on a connection of its own.

    Made by :meth:`open`; ends by :meth:`close` or by itself, which :attr:`lost` tells.

    Attributes:
        topology: what was declared.
        consumer: for requests.
        publisher: for replies and dead letters.
        direct_replies: which direct reply-to names can be published to.
        lost: done once the session has ended; its result is the reason.
        size_limit: what the broker takes in a message.
    """

    def __init__(self, topology: Topology, direct_replies: DirectReplies, max_message_size: int) -> None:
        self.topology = topology
        self.lost: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        self.size_limit = SizeLimit(max_message_size, self)
        self.direct_replies = direct_replies
        self.consumer: Consumer
        self.publisher: Publisher
        self._connections: list[Connection] = []
        self._channel: AbstractChannel

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
        try_out: Literal["consume first", "publish first"] | None = None,
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
            try_out: consume, and publish something to nobody, so that a right that is missing is
                told as what it is. Publish first where the worker was let in before: while it may
                not answer, no delivery is to be counted.

        Raises:
            BrokerUnavailable: nobody answers, or not in time.
            BrokerRefused: login, virtual host or permission refused.
            TopologyMismatch: something stands there under these names with other properties.
        """
        session = cls(topology, DirectReplies(urls, f"{name} direct reply"), max_message_size)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                for each in (name, f"{name} replies"):
                    session._connections.append(await connect(urls, name=each, connection_class=Connection))
                await topology.ensure(session._connections[0])
                await session._open_channels(fast_path=fast_path, prefetch_size=prefetch_size)
                if try_out == "publish first":
                    await session.publisher.try_out()
                if try_out is not None:
                    await session.consumer.consume(1)
                if try_out == "consume first":
                    await session.publisher.try_out()
        except BaseException as error:
            await session._close_connections()
            if isinstance(error, (BrokerUnavailable, BrokerRefused, TopologyMismatch)):
                raise
            if isinstance(error, ChannelLost) and error.refused:
                raise BrokerRefused(f"The broker refuses what the worker needs: {error}") from error
            if isinstance(error, TimeoutError):
                alarms = [each.frames.blocked for each in session._connections if each.frames.blocked]
                if alarms:
                    raise PublishersBlocked(alarms[0]) from error
                reason = f"The broker does not answer for the queue '{topology.queue}'"
                raise BrokerUnavailable(reason) from error
            # A bare Exception is aiormq's: of what was under way when the connection ended.
            if isinstance(error, CONNECTION_EXCEPTIONS) or type(error) is Exception:
                reason = f"The broker does not let a session be opened: {session._lost_over(error)}"
                raise BrokerUnavailable(reason) from error
            raise
        return session

    async def _open_channels(self, *, fast_path: bool, prefetch_size: int) -> None:
        consuming, publishing = self._connections
        self._channel = channel = await consuming.channel(publisher_confirms=False)
        queue = await channel.get_queue(self.topology.queue, ensure=False)
        underlay = await channel.get_underlay_channel()
        cancelled = "the broker cancelled the consumer: its queue was deleted or moved"
        underlay.on_consumer_cancel_callbacks.add(lambda _: self._end(cancelled))
        self.consumer = Consumer(consuming.frames, channel, queue, underlay, self.lost, prefetch_size)
        if fast_path:
            reader = DeliveryReader(consuming.frames, underlay.number, self.consumer.delivered)
            consuming.frames.channels[underlay.number] = reader
        confirming = await publishing.channel(publisher_confirms=True)
        self.publisher = (BulkPublisher if fast_path else Publisher)(publishing, confirming)
        for closing in (channel, confirming, consuming, publishing):
            closing.close_callbacks.add(lambda _, error: self._end(error))

    def raise_if_lost(self, lost: ChannelLost) -> None:
        """Raise why another channel ended, unless the broker closed that one alone. (For want of a
        permission it would close each.)
        """
        if self.lost.done() or lost.refused or not lost.closed_over:
            raise lost

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
            await close_quietly(channel)

    async def redeclare(self) -> None:
        """Declare the topology again: a queue of it is missing.

        Raises:
            ChannelLost: the session ended.
            TopologyMismatch: it can't be.
        """
        with lost_with(self._channel):
            await self.topology.ensure(self._connections[0])

    async def close(self) -> None:
        """Close the connections; the broker requeues what was not acknowledged."""
        if not self.lost.done():
            # aiormq's connection drops the frames that wait to be written when it is closed, the
            # last acknowledgements among them; a channel that is closed writes them first.
            await close_quietly(self._channel)
        await self._close_connections()

    async def _close_connections(self) -> None:
        self.direct_replies.close()
        await asyncio.gather(*(close_quietly(connection) for connection in self._connections))
        self._end("closed by the worker")

    def _end(self, cause: BaseException | str | None) -> None:
        if not self.lost.done():
            self.lost.set_result(self._lost_over(cause))

    def _lost_over(self, cause: BaseException | str | None) -> ChannelLost:
        """The loss with the broker's own words, which aiormq does not always pass on."""
        said = (connection.frames.closed for connection in self._connections)
        return ChannelLost(cause, next(filter(None, said), None))
