"""One connection to the broker with one channel, which publishes requests and consumes their
replies: direct reply-to wants both on the same channel.
"""

import asyncio

import aio_pika
import aiormq
from aio_pika.exceptions import AMQPChannelError, DeliveryError, PublishError
from aiormq.exceptions import (
    ChannelAccessRefused,
    ConnectionFrameError,
    ConnectionNotAllowed,
    ConnectionSyntaxError,
)

from worker.backoff import Backoff
from worker.broker.connection import (
    CONNECT_TIMEOUT,
    BrokerUnavailable,
    ChannelLost,
    close_quietly,
    connect,
    lost_with,
)
from worker.client.errors import AccessRefused, NotRoutable, NotTaken
from worker.client.library_logs import of_the_client
from worker.client.replies import PendingReplies, Reply
from worker.contract.message import DIRECT_REPLY_TO

# A full queue is tried again so often, over some 2 seconds.
PUBLISH_TRIES = 5


class PublicationRefused(Exception):
    """The broker ended the channel, or the connection, over something that was being published."""


class ClientConnection:
    """A connection whose channel, once closed, is not opened again: all is given up for a new one.

    Safe from many tasks. It publishes and consumes by the channel of aiormq that aio-pika's is
    built on. Of 316 us of CPU a request that saves 40, as aio-pika makes a message and two tasks of
    each reply, and 38, as its publishers wait for the socket in turn.
    """

    def __init__(self, connection: aio_pika.Connection) -> None:
        self._connection = connection
        self._channel = connection.channel(on_return_raises=True)
        self._replies = PendingReplies()
        self._no_replies = ""  # why there are none

    @classmethod
    async def open(cls, urls: str) -> "ClientConnection":
        """Connect, and consume replies; a user who may not do that can still publish what wants
        none.

        Raises:
            BrokerUnavailable, BrokerRefused: as :func:`worker.broker.connection.connect`.
            AccessRefused: the user may have no channel.
        """
        with of_the_client():
            opened = cls(await connect(urls, name="flow-run-client", connection_class=aio_pika.Connection))
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    with lost_with(opened._channel):
                        await opened._open_channel()
            except BaseException as error:
                await opened.close()
                if isinstance(error.__cause__, ConnectionNotAllowed):
                    raise AccessRefused(f"The broker refuses a channel: {error}") from error
                if isinstance(error, (ChannelLost, TimeoutError)):
                    told = f"The broker does not let a channel be opened: {error}"
                    raise BrokerUnavailable(told) from error
                raise
        return opened

    async def _open_channel(self) -> None:
        await self._channel
        try:
            channel = await self._channel.get_underlay_channel()
            await channel.basic_consume(DIRECT_REPLY_TO, self._replies.on_message, no_ack=True)
        except ChannelAccessRefused as error:
            self._no_replies = f"The broker refuses to let this user consume replies: {error}"
            self._channel = await self._connection.channel(on_return_raises=True)
        self._channel.close_callbacks.add(self._on_channel_closed)

    @property
    def lost(self) -> bool:
        return self._channel.is_closed

    async def close(self) -> None:
        """Close it; what is under way on it ends with :class:`ChannelLost`."""
        await close_quietly(self._connection)

    async def publish(self, queue: str, message: aio_pika.Message) -> "asyncio.Future[Reply] | None":
        """Publish, and wait for the broker's confirm; returns what the reply will be, if the
        message wants one.

        Raises:
            NotRoutable, NotTaken, AccessRefused: this is final.
            PublicationRefused: the broker ended the connection over this message, or over another
                one of that moment.
            ChannelLost: it ended by whatever else.
        """
        if message.reply_to and self._no_replies:
            raise AccessRefused(self._no_replies)
        reply = self._replies.expect(message.message_id or "") if message.reply_to else None
        backoff = Backoff()
        try:
            while not await self._is_taken(queue, message):
                if backoff.tries >= PUBLISH_TRIES:
                    raise NotTaken(f"The broker does not take the message: the queue '{queue}' is full.")
                await backoff.sleep()
        except BaseException:
            if reply:
                reply.cancel()
            raise
        return reply

    async def _is_taken(self, queue: str, message: aio_pika.Message) -> bool:
        try:
            with lost_with(self._channel):
                channel = await self._channel.get_underlay_channel()
                assert isinstance(channel, aiormq.Channel)  # it is; the abstract one lacks "wait"
                await channel.basic_publish(
                    message.body,
                    routing_key=queue,
                    properties=message.properties,
                    mandatory=True,
                    wait=False,  # for the socket, one message at a time; the confirm is waited for
                )
        except ChannelLost as lost:
            match lost.__cause__:
                case PublishError():
                    raise NotRoutable(f"There is no queue '{queue}': has a worker declared it?") from None
                case DeliveryError():
                    return False
                case ChannelAccessRefused() as error:
                    # Of the user and the exchange, not of the message: so it is for all that were
                    # being published.
                    raise AccessRefused(f"The broker refuses to let this user publish: {error}") from error
                case AMQPChannelError() | ConnectionFrameError() | ConnectionSyntaxError() as error:
                    raise PublicationRefused(str(error)) from error
            raise
        except (TypeError, ValueError) as error:
            raise NotRoutable(f"No queue can have the name '{queue}': {error}") from error
        return True

    def _on_channel_closed(self, *_: object) -> None:
        self._replies.fail(ChannelLost("the connection to the broker is gone"))
