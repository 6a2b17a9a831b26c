"""One connection to the broker with one channel. It publishes requests and consumes their replies
on that channel, as direct reply-to demands.
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

from ..broker.connection import (
    CONNECT_TIMEOUT,
    BrokerUnavailable,
    ChannelLost,
    close_quietly,
    connect,
    lost_with,
)
from ..contract.message import DIRECT_REPLY_TO
from .errors import AccessRefused, ClientError, MessageRefused, NotRoutable, NotTaken
from .library_logs import of_the_client
from .replies import PendingReplies, Reply


class ClientConnection:
    """A connection that is given up, for a new one, once its channel has closed.

    Many tasks may use it at once. It publishes and consumes by aiormq's channel, below aio-pika's.
    Of 316 us of CPU a request, that saves 40, since aio-pika makes a message and two tasks for each
    reply, and 38, since its publishers wait for the socket in turn.
    """

    def __init__(self, connection: aio_pika.Connection) -> None:
        self._connection = connection
        self._channel = connection.channel(on_return_raises=True)
        self._replies = PendingReplies()
        self._no_replies = ""  # why there are none

    @classmethod
    async def open(cls, urls: str) -> "ClientConnection":
        """Connect, and consume replies. A user without the right to consume them can still publish
        requests that want no reply.

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
        """Close it. Whoever publishes or waits for a reply on it gets :class:`ChannelLost`."""
        await close_quietly(self._connection)

    async def publish(self, queue: str, message: aio_pika.Message) -> "asyncio.Future[Reply] | None":
        """Publish, and wait for the broker's confirm. Returns the future of the reply, if the
        message wants one.

        Raises:
            NotRoutable, AccessRefused: trying again would not help.
            NotTaken: the broker refused the message this time.
            MessageRefused: the broker ended the connection over this message, or over another that
                was published at the same time.
            ChannelLost: the connection ended for another reason.
        """
        if message.reply_to and self._no_replies:
            raise AccessRefused(self._no_replies)
        reply = self._replies.expect(message.message_id or "") if message.reply_to else None
        try:
            with lost_with(self._channel):
                channel = await self._channel.get_underlay_channel()
                assert isinstance(channel, aiormq.Channel)  # it is; the abstract one lacks "wait"
                await channel.basic_publish(
                    message.body,
                    routing_key=queue,
                    properties=message.properties,
                    mandatory=True,
                    wait=False,  # for the socket, in turn with others; the confirm is waited for
                )
        except BaseException as error:
            if reply:
                reply.cancel()
            if isinstance(error, (TypeError, ValueError)):
                raise NotRoutable(f"No queue can have the name '{queue}': {error}") from error
            if refusal := _refusal(error.__cause__, queue):
                raise refusal from error
            raise
        return reply

    def _on_channel_closed(self, *_: object) -> None:
        self._replies.fail(ChannelLost("the connection to the broker is gone"))


def _refusal(cause: BaseException | None, queue: str) -> ClientError | None:
    """What the broker's answer to a publication means; None if the connection was lost."""
    match cause:
        case PublishError():
            return NotRoutable(f"There is no queue '{queue}': has a worker declared it?")
        case DeliveryError():
            return NotTaken(f"The broker does not take the message: the queue '{queue}' is full.")
        case ChannelAccessRefused():
            # The user lacks a right to the exchange, whatever the message is. So all that were
            # being published end with this.
            return AccessRefused(f"The broker refuses to let this user publish: {cause}")
        case AMQPChannelError() | ConnectionFrameError() | ConnectionSyntaxError():
            return MessageRefused(f"The broker refuses the message: {cause}")
        case _:
            return None
