"""A session at the broker: two connections, the topology, a consumer, a publisher. Knows no
requests and no database.

A session ends with its consumer (``basic.cancel``, as when the queue is deleted), with a channel or
with a connection. The only way on is to open another. The broker delivers in-flight requests again.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

import structlog
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from worker.amqp.publication import Publication
from worker.amqp.transport import Connection
from worker.broker.apart import Apart
from worker.broker.connection import (
    FORCED,
    BrokerRefused,
    BrokerUnavailable,
    ChannelLost,
    DeliveryFailed,
    PublishersBlocked,
    close_quietly,
    connect,
    lost_with,
)
from worker.broker.consumer import Consumer
from worker.broker.direct_reply import DirectReplies
from worker.broker.in_flight import PREFETCH_SIZE
from worker.broker.login import login_of
from worker.broker.publisher import Confirmation, Publisher, publisher_on
from worker.broker.size_limit import SizeLimit
from worker.broker.suspects import Suspects
from worker.broker.topology import Topology, TopologyMismatch
from worker.contract.message import MAX_MESSAGE_SIZE
from worker.tasks.backoff import Backoff
from worker.urls.broker import Server, server_of

# Seconds to open a session. Each of its connections has its own limit, too.
OPEN_TIMEOUT = 30.0
# Seconds to declare the topology again. It is tried again with the publication that needs it.
DECLARE_TIMEOUT = 10.0
# Seconds to wait for the confirm of a publication that goes out alone.
CONFIRM_SECONDS = 2.0

log = structlog.get_logger(__name__)


class Session:
    """A consumer and a publisher, each on a connection of its own.

    Made by :meth:`open`. Ends by :meth:`close`, or when the broker ends it: see :attr:`lost`.

    Attributes:
        topology: was declared at the start.
        consumer: for requests.
        publisher: for replies and dead letters.
        direct_replies: knows the direct reply-to names that are safe to publish to.
        lost: done once the session has ended; its result is the reason.
        size_limit: the broker's limit on a message.
        suspects: messages whose answers may have ended a session.
        unbound: why bindings to exchanges of others could not be made at the start.
    """

    def __init__(
        self, topology: Topology, urls: str, name: str, max_message_size: int, suspects: Suspects
    ) -> None:
        self.topology = topology
        self.lost: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        self.size_limit = SizeLimit(max_message_size, self.another_publisher, self.raise_if_lost)
        self.direct_replies = DirectReplies(urls, f"{name} direct reply")
        self.suspects = suspects
        self.unbound: list[str] = []
        self.consumer: Consumer
        self.publisher: Publisher
        self._connections: list[Connection] = []
        self._channel: AbstractChannel
        self._apart = Apart(urls, f"{name} apart")
        self._alone = Apart(urls, f"{name} alone")
        self._one_alone = asyncio.Lock()

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
        careful: bool = False,
        suspects: Suspects | None = None,
    ) -> "Session":
        """Connect and declare the topology.

        Args:
            urls: ``amqp://`` or ``amqps://`` URL, or several that are separated by commas; TLS
                files and heartbeat in the query as aiormq takes them.
            topology: to declare.
            name: the connections' name in the management UI.
            fast_path: read and write in bulk; see :mod:`worker.amqp`.
            prefetch_size: bytes of deliveries to hold. The last delivery may exceed it.
            max_message_size: the broker's limit in bytes, until it shows a lower one.
            try_out: consume, and publish to a missing queue, to find a missing permission at the
                start. Publish first if the worker had its permissions before: no delivery must be
                counted while the worker may not answer.
            careful: the last session ended over a delivery. Then consume one at a time until that
                is past: the broker counts a session's end against all deliveries in flight.
            suspects: messages whose answers may have ended an earlier session.

        Raises:
            BrokerUnavailable: no broker answers in time.
            DeliveryFailed: the broker seems to have ended the session over its first delivery.
            BrokerRefused: login, virtual host or permission refused.
            TopologyMismatch: a queue or the exchange has other properties, or can't be declared.
        """
        session = cls(topology, urls, name, max_message_size, Suspects() if suspects is None else suspects)
        consuming = False
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                for each in (name, f"{name} replies"):
                    session._connections.append(await connect(urls, name=each, connection_class=Connection))
                await topology.ensure(session._connections[0])
                session.unbound = await topology.bind(session._connections[0])
                await session._open_channels(
                    fast_path=fast_path, prefetch_size=prefetch_size, careful=careful
                )
                if try_out == "publish first":
                    await session.publisher.try_out()
                if try_out is not None:
                    consuming = True
                    await session.consumer.consume(1)
                if try_out == "consume first":
                    await session.publisher.try_out()
        except BaseException as error:
            await session._close_connections()
            if consuming and session.ended_over_delivery and isinstance(error, Exception):
                raise DeliveryFailed(
                    f"The broker closed the connection: {session._connections[0].frames.closed}"
                ) from error
            if isinstance(error, (BrokerUnavailable, BrokerRefused, TopologyMismatch)):
                raise
            if isinstance(error, ChannelLost) and error.refused:
                raise BrokerRefused(f"The broker refuses a permission: {error}") from error
            if isinstance(error, TimeoutError):
                alarms = [each.frames.blocked for each in session._connections if each.frames.blocked]
                if alarms:
                    raise PublishersBlocked(alarms[0]) from error
                reason = f"The broker does not answer for the queue '{topology.queue}'"
                raise BrokerUnavailable(reason) from error
            # aiormq raises a bare Exception from a call that the connection's end cut short.
            if isinstance(error, CONNECTION_EXCEPTIONS) or type(error) is Exception:
                reason = f"No session can be opened at the broker: {session._lost_over(error)}"
                raise BrokerUnavailable(reason) from error
            raise
        return session

    async def _open_channels(self, *, fast_path: bool, prefetch_size: int, careful: bool) -> None:
        consuming, publishing = self._connections
        self._channel = channel = await consuming.channel(publisher_confirms=False)
        queue = await channel.get_queue(self.topology.queue, ensure=False)
        underlay = await channel.get_underlay_channel()
        cancelled = "the broker cancelled the consumer: its queue was deleted or moved"
        underlay.on_consumer_cancel_callbacks.add(lambda _: self._end(cancelled))
        self.consumer = Consumer(
            consuming, channel, queue, underlay, self.lost, prefetch_size, bulk=fast_path, careful=careful
        )
        confirming = await publishing.channel(publisher_confirms=True)
        self.publisher = Publisher(publishing, confirming, bulk=fast_path)
        for closing in (channel, confirming, consuming, publishing):
            closing.close_callbacks.add(lambda _, error: self._end(error))

    @property
    def server(self) -> Server:
        """The server that the requests come from. Replies go to the same, or to another node."""
        return server_of(self._connections[0].url)

    @property
    def ended_over_delivery(self) -> bool:
        """True if the broker closed the consuming connection with an error. A delivery caused it,
        since our calls there make no errors.
        """
        said = self._connections[0].frames.closed
        return said is not None and not said.startswith(FORCED)

    def _raise_if_ended(self) -> None:
        if self.lost.done():
            raise self.lost.result()

    def raise_if_lost(self, lost: ChannelLost) -> None:
        """Raise ``lost``, the end of another channel, if the session has ended too, or if a
        permission is missing: it would be missing on every channel.
        """
        if self.lost.done() or lost.refused:
            raise lost

    @asynccontextmanager
    async def another_publisher(self) -> AsyncIterator[Publisher]:
        """A publisher on a temporary channel of a separate connection. If that can't be opened, the
        channel is on the publishing connection.

        Raises:
            ChannelLost: the session or this channel ended.
        """
        self._raise_if_ended()
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self._apart.connection())
            except (BrokerUnavailable, BrokerRefused) as error:
                log.warning("no_connection_apart", error=str(error))
                connection = self._connections[-1]
            yield await stack.enter_async_context(publisher_on(connection))

    async def login(self) -> str | None:
        """The publishing user's name at the broker; as :func:`login_of`."""
        return await login_of(self._connections[-1])

    async def publish_alone(self, publication: Publication) -> Confirmation | None:
        """Publish a message that may have ended a session, with nothing else on its connection.

        Returns:
            The broker's answer, as far as it came in time. None if the broker ended the connection
            or the channel over this message, while it takes others.

        Raises:
            ChannelLost: the session ended.
            BrokerUnavailable, BrokerRefused: no connection can be opened now.
        """
        self._raise_if_ended()
        # The outer context keeps the connection open for the next publication.
        async with self._alone.connection(), self._one_alone:
            began = forced = False
            try:
                async with self._alone.connection() as connection, publisher_on(connection) as publisher:
                    began = True
                    try:
                        confirmation = await publisher.publish([publication])
                        await confirmation.wait(CONFIRM_SECONDS)
                        return confirmation
                    finally:
                        forced = (connection.frames.closed or "").startswith(FORCED)
            except ChannelLost as lost:
                if not began or forced:  # the publication is not the cause
                    await self._alone.leave()
                    raise BrokerUnavailable(str(lost)) from lost
            await self._until_another_is_taken()
            self._raise_if_ended()
            return None

    async def _until_another_is_taken(self) -> None:
        """Publish to a missing queue on a new connection until the broker takes that: the broker or
        the network may have ended the last connection for other reasons.
        """
        backoff = Backoff()
        while True:
            await self._alone.leave()
            try:
                async with self._alone.connection() as connection, publisher_on(connection) as publisher:
                    return await publisher.try_out()
            except (ChannelLost, BrokerUnavailable, BrokerRefused) as error:
                if self.lost.done() or (isinstance(error, ChannelLost) and error.refused):
                    raise
                log.warning("nothing_is_taken", error=str(error), tries=backoff.tries + 1)
                await backoff.sleep()

    async def redeclare(self) -> None:
        """Declare the topology again, since a queue may be missing. Uses a separate connection: the
        consuming one is not read while reading is paused. Other errors are only logged.

        Raises:
            TopologyMismatch: it can't be declared.
        """
        try:
            async with asyncio.timeout(DECLARE_TIMEOUT), self._apart.connection() as connection:
                with lost_with(connection):
                    await self.topology.ensure(connection, consumed=True)
                    await self.topology.bind(connection)
        except (BrokerUnavailable, BrokerRefused, ChannelLost, TimeoutError) as error:
            log.warning("not_declared_again", error=str(error) or "the broker does not answer in time")

    async def close(self) -> None:
        """Close the connections. The broker requeues unacknowledged deliveries."""
        self.consumer.drop()  # resumes reading, so that the broker's answer to the close is read
        if not self.lost.done():
            # Closing aiormq's connection drops the frames that wait to be written, such as the last
            # acknowledgements. Closing the channel writes them first.
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
        """The loss with the broker's reason, which aiormq does not always pass on."""
        said = (connection.frames.closed for connection in self._connections)
        return ChannelLost(cause, next(filter(None, said), None))
