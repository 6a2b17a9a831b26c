"""One stay at the broker: two connections, the topology, a consumer, a publisher; knows nothing of
requests and of the database.

Whatever lets go (``basic.cancel`` because the queue was deleted, the channel, a connection) ends
the session. There is one way on from there: open another. What was in flight is delivered again by
the broker.
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
from worker.broker.publisher import Confirmation, Publisher
from worker.broker.size_limit import SizeLimit
from worker.broker.suspects import Suspects
from worker.broker.topology import Topology, TopologyMismatch
from worker.contract.message import MAX_MESSAGE_SIZE
from worker.tasks.backoff import Backoff

# Both connections, the topology and all; seconds. Each connection has a limit of its own.
OPEN_TIMEOUT = 30.0
# To declare the topology again; seconds. It is tried again with what waits for it.
DECLARE_TIMEOUT = 10.0
# For the confirm of a publication that goes out alone, as for any other's; seconds.
CONFIRM_SECONDS = 2.0

log = structlog.get_logger(__name__)


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
        suspects: messages whose answers may be why a session ended.
    """

    def __init__(
        self, topology: Topology, urls: str, name: str, max_message_size: int, suspects: Suspects
    ) -> None:
        self.topology = topology
        self.lost: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        self.size_limit = SizeLimit(max_message_size, self.another_publisher, self.raise_if_lost)
        self.direct_replies = DirectReplies(urls, f"{name} direct reply")
        self.suspects = suspects
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
            topology: what to declare.
            name: the connections' name as the management UI shows it.
            fast_path: read and write in bulk; see :mod:`worker.amqp`.
            prefetch_size: bytes of deliveries that are held at the most; one more is let in.
            max_message_size: bytes that the broker takes in a message, as far as one knows.
            try_out: consume, and publish something to nobody, so that a right that is missing is
                told as what it is. Publish first where the worker was let in before: while it may
                not answer, no delivery is to be counted.
            careful: whether the last session ended over what was delivered. Then one delivery is
                let in at a time until that is past, as the broker counts it against all that are.
            suspects: messages whose answers may be why an earlier session ended.

        Raises:
            BrokerUnavailable: nobody answers, or not in time.
            DeliveryFailed: the broker ended the session over its first delivery, as it seems.
            BrokerRefused: login, virtual host or permission refused.
            TopologyMismatch: something stands there under these names with other properties.
        """
        session = cls(topology, urls, name, max_message_size, Suspects() if suspects is None else suspects)
        consuming = False
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                for each in (name, f"{name} replies"):
                    session._connections.append(await connect(urls, name=each, connection_class=Connection))
                await topology.ensure(session._connections[0])
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

    async def _open_channels(self, *, fast_path: bool, prefetch_size: int, careful: bool) -> None:
        consuming, publishing = self._connections
        self._channel = channel = await consuming.channel(publisher_confirms=False)
        queue = await channel.get_queue(self.topology.queue, ensure=False)
        underlay = await channel.get_underlay_channel()
        cancelled = "the broker cancelled the consumer: its queue was deleted or moved"
        underlay.on_consumer_cancel_callbacks.add(lambda _: self._end(cancelled))
        self.consumer = Consumer(
            consuming,
            channel,
            queue,
            underlay,
            self.lost,
            prefetch_size,
            bulk=fast_path,
            careful=careful,
        )
        confirming = await publishing.channel(publisher_confirms=True)
        self.publisher = Publisher(publishing, confirming, bulk=fast_path)
        for closing in (channel, confirming, consuming, publishing):
            closing.close_callbacks.add(lambda _, error: self._end(error))

    @property
    def ended_over_delivery(self) -> bool:
        """Whether the broker closed the consuming connection over an error: over what it delivered,
        as nothing that we do there is one.
        """
        said = self._connections[0].frames.closed
        return said is not None and not said.startswith(FORCED)

    def _raise_if_ended(self) -> None:
        if self.lost.done():
            raise self.lost.result()

    def raise_if_lost(self, lost: ChannelLost) -> None:
        """Raise why a channel beside the session's own ended, if the session has ended too, or if a
        permission is missing: it would be on each channel.
        """
        if self.lost.done() or lost.refused:
            raise lost

    @asynccontextmanager
    async def another_publisher(self) -> AsyncIterator[Publisher]:
        """A publisher on a channel that is open for so long: on a connection apart or, where none
        is to be had, on the one that publishes.

        Raises:
            ChannelLost: the session ended, or this channel did.
        """
        self._raise_if_ended()
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self._apart.connection())
            except (BrokerUnavailable, BrokerRefused) as error:
                log.warning("no_connection_apart", error=str(error))
                connection = self._connections[-1]
            yield await stack.enter_async_context(_publisher(connection))

    async def login(self) -> str | None:
        """By which name the broker knows the user that publishes; as :func:`login_of`."""
        return await login_of(self._connections[-1])

    async def publish_alone(self, publication: Publication) -> Confirmation | None:
        """Publish what may be why a session ended: with nothing else on its connection.

        Returns:
            What the broker said, as far as it answered in time; None if it ended the connection or
            the channel over it, while it takes others.

        Raises:
            ChannelLost: the session ended.
            BrokerUnavailable, BrokerRefused: there is no connection for it now.
        """
        self._raise_if_ended()
        # The outer one keeps the connection open for those who wait.
        async with self._alone.connection(), self._one_alone:
            began = forced = False
            try:
                async with self._alone.connection() as connection, _publisher(connection) as publisher:
                    began = True
                    try:
                        confirmation = await publisher.publish([publication])
                        await confirmation.wait(CONFIRM_SECONDS)
                        return confirmation
                    finally:
                        forced = (connection.frames.closed or "").startswith(FORCED)
            except ChannelLost as lost:
                if not began or forced:  # an operator's doing is nothing of the publication's
                    await self._alone.leave()
                    raise BrokerUnavailable(str(lost)) from lost
            await self._until_another_is_taken()
            self._raise_if_ended()
            return None

    async def _until_another_is_taken(self) -> None:
        """Publish to nobody on a new connection until the broker takes that: it, or the network,
        may have been why the last one ended.
        """
        backoff = Backoff()
        while True:
            await self._alone.leave()
            try:
                async with self._alone.connection() as connection, _publisher(connection) as publisher:
                    return await publisher.try_out()
            except (ChannelLost, BrokerUnavailable, BrokerRefused) as error:
                if self.lost.done() or (isinstance(error, ChannelLost) and error.refused):
                    raise
                log.warning("nothing_is_taken", error=str(error), tries=backoff.tries + 1)
                await backoff.sleep()

    async def redeclare(self) -> None:
        """Declare the topology again, as a queue of it may be missing. Not on the consuming
        connection: no answer comes while that is not read. What hinders it is logged, and is no
        reason to end anything.

        Raises:
            TopologyMismatch: it can't be.
        """
        try:
            async with asyncio.timeout(DECLARE_TIMEOUT), self._apart.connection() as connection:
                with lost_with(connection):
                    await self.topology.ensure(connection)
        except (BrokerUnavailable, BrokerRefused, ChannelLost, TimeoutError) as error:
            log.warning("not_declared_again", error=str(error) or "the broker does not answer in time")

    async def close(self) -> None:
        """Close the connections; the broker requeues what was not acknowledged."""
        self.consumer.drop()  # what is not read would not be answered
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


@asynccontextmanager
async def _publisher(connection: Connection) -> AsyncIterator[Publisher]:
    channel: AbstractChannel = connection.channel(publisher_confirms=True)
    with lost_with(channel):
        await channel.initialize()
    try:
        yield Publisher(connection, channel)
    finally:
        await close_quietly(channel)
