"""The client's link to the broker: a connection, its replies, and what the broker says to what is
published.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from aiormq.exceptions import (
    AMQPChannelError,
    AMQPError,
    ChannelAccessRefused,
    ConnectionFrameError,
    ConnectionNotAllowed,
    DeliveryError,
    PublishError,
)
from pamqp import commands as spec
from pydantic import BaseModel
from pydantic_core import to_json

from worker.backoff import Backoff
from worker.broker.session import BrokerRefused, BrokerUnavailable, connect
from worker.client.errors import AccessRefused, BrokerGone, NotRoutable, NotSerializable, NotTaken
from worker.contract.message import DIRECT_REPLY_TO
from worker.contract.request import CreateFlowRun

# A broker that takes the connection and then says nothing counts as away after this many seconds,
# as it does for a connection.
OPEN_TIMEOUT = 10.0
CLOSE_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker answered: the status, and the body as it came."""

    status: int
    body: bytes


class Line:
    """A way to the broker: a link that is opened when it is first wanted, and again when it was
    lost, after a pause.

    Args:
        pauses: how long they are; from the first on again after a link on which the broker has
            answered.
    """

    def __init__(self, url: str, pauses: Backoff) -> None:
        self._url = url
        self._pauses = pauses
        self._link: Link | None = None
        self._opening = asyncio.Lock()
        self._closed = asyncio.Event()

    async def link(self) -> "Link":
        """The link.

        Raises:
            BrokerGone, AccessRefused: there is none to be had.
        """
        async with self._opening:
            if self._link is not None and self._link.lost:
                await self._link.close()
                if self._link is not None and self._link.answered:
                    self._pauses.reset()
                self._link = None
                await self._pause(self._pauses.next_delay())
            backoff = Backoff()
            while self._link is None:
                if self._closed.is_set():
                    raise BrokerGone("The client is closed.")
                try:
                    self._link = await Link.open(self._url)
                except BrokerUnavailable as error:
                    if backoff.tries >= 5:
                        raise BrokerGone(str(error)) from error
                    await self._pause(backoff.next_delay())
                except BrokerRefused as error:
                    raise BrokerGone(str(error)) from error
                else:
                    if self._closed.is_set():
                        await self.close()
            return self._link

    async def close(self) -> None:
        self._closed.set()
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until the line is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()


@dataclass(frozen=True, slots=True)
class Message:
    """A request as it is published, and published again, to the letter."""

    message_id: str
    body: bytes
    headers: dict[str, Any] | None
    reply_to: str | None

    @classmethod
    def of(
        cls,
        request: Mapping[str, Any] | CreateFlowRun | bytes,
        headers: Mapping[str, Any] | None,
        reply_to: str | None,
    ) -> "Message":
        try:
            if isinstance(request, bytes):
                body = request
            elif isinstance(request, BaseModel):
                body = request.model_dump_json(exclude_unset=True).encode()
            else:
                body = to_json({name: value for name, value in request.items() if value is not None})
            message = cls(uuid4().hex, body, dict(headers) if headers else None, reply_to)
            if headers:
                message.properties.marshal()
        except Exception as error:  # a request's own values say how they are written, and may raise anything
            raise NotSerializable(f"The request can't be written: {error}") from error
        return message

    @property
    def properties(self) -> spec.Basic.Properties:
        return spec.Basic.Properties(
            content_type="application/json",
            headers=self.headers,
            delivery_mode=2,
            correlation_id=self.message_id if self.reply_to else None,
            reply_to=self.reply_to,
            message_id=self.message_id,
        )


class LinkLost(Exception):
    """The connection ended under a call."""


class LinkRefused(Exception):
    """The broker ended the channel, or the connection, over something that was being published."""


class Link:
    """One connection with one channel: direct reply-to wants both directions on the same.

    A channel that the broker closed is not opened again on its connection: all of it is given up
        for a new one.

    Attributes:
        answered: whether the broker has said anything to a publication.
    """

    def __init__(
        self, connection: AbstractConnection, channel: AbstractChannel, deaf: AccessRefused | None = None
    ) -> None:
        self.answered = False
        self._connection = connection
        self._channel = channel
        self._deaf = deaf
        self._replies: dict[str, asyncio.Future[Reply | None]] = {}
        channel.closing.add_done_callback(self._closed)

    @classmethod
    async def open(cls, url: str) -> "Link":
        """Connect, and consume replies; a user who may not do that can still publish what wants
        none.

        Raises:
            BrokerUnavailable, BrokerRefused: as :func:`worker.broker.session.connect`.
            AccessRefused: the user may have no channel.
        """
        connection = await connect(url, name="flow-run-client")
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                with _told_as_loss(connection):
                    return await cls._open_on(connection)
        except BaseException as error:
            await _close(connection)
            if isinstance(error, ConnectionNotAllowed):
                raise AccessRefused(f"The broker refuses a channel: {error}") from error
            if isinstance(error, (AMQPError, TimeoutError, LinkLost)):
                raise BrokerUnavailable(f"The broker does not let a channel be opened: {error}") from error
            raise

    @classmethod
    async def _open_on(cls, connection: AbstractConnection) -> "Link":
        try:
            link = cls(connection, await connection.channel())
            await link._channel.basic_consume(DIRECT_REPLY_TO, link._on_reply, no_ack=True)
        except ChannelAccessRefused as error:
            deaf = AccessRefused(f"The broker refuses to let this user consume replies: {error}")
            return cls(connection, await connection.channel(), deaf)
        return link

    @property
    def lost(self) -> bool:
        return bool(self._channel.is_closed)

    async def close(self) -> None:
        await _close(self._connection)

    async def publish(self, queue: str, message: Message) -> "asyncio.Future[Reply | None]":
        """Publish with a confirm; returns what the reply will be (None at once for a message that
        wants none).

        Raises:
            NotRoutable, NotTaken, AccessRefused: this is final.
            LinkRefused: the broker ended the link over this message, or over another one of that
                moment.
            LinkLost: the link ended, by whatever else.
        """
        if message.reply_to and self._deaf:
            raise AccessRefused(str(self._deaf))
        reply: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        reply.add_done_callback(lambda _: self._forget(message, reply))
        if message.reply_to:
            self._replies[message.message_id] = reply
        else:
            reply.set_result(None)
        try:
            await self._publish(queue, message)
        except BaseException:
            reply.cancel()
            raise
        return reply

    async def _publish(self, queue: str, message: Message) -> None:
        backoff = Backoff()
        while True:
            try:
                with _told_as_loss(self._channel):
                    await self._channel.basic_publish(
                        message.body, routing_key=queue, properties=message.properties, mandatory=True
                    )
            except PublishError:
                self.answered = True
                raise NotRoutable(f"There is no queue '{queue}': has a worker declared it?") from None
            except DeliveryError:
                self.answered = True
                if backoff.tries >= 5:
                    raise NotTaken(
                        f"The broker does not take the message: the queue '{queue}' is full."
                    ) from None
                await backoff.sleep()
            except ChannelAccessRefused as error:
                # Of the user and the exchange, not of the message: so it is for all that were being
                # published.
                self.answered = True
                raise AccessRefused(f"The broker refuses to let this user publish: {error}") from error
            except (AMQPChannelError, ConnectionFrameError) as error:
                self.answered = True
                raise LinkRefused(str(error)) from error
            else:
                self.answered = True
                return

    async def _on_reply(self, message: DeliveredMessage) -> None:
        properties = message.header.properties
        reply = self._replies.get(properties.correlation_id or "")
        status = (properties.headers or {}).get("status")
        if reply is not None and not reply.done() and isinstance(status, int):
            reply.set_result(Reply(status, message.body))

    def _forget(self, message: Message, reply: "asyncio.Future[Reply | None]") -> None:
        self._replies.pop(message.message_id, None)
        if not reply.cancelled():
            reply.exception()  # asked for, so that none is complained of where publishing has told the same already

    def _closed(self, _: asyncio.Future[Any]) -> None:
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(LinkLost("the connection to the broker is gone"))


@contextmanager
def _told_as_loss(resource: AbstractConnection | AbstractChannel) -> Iterator[None]:
    """Raise :class:`LinkLost` for all the ways in which aiormq ends a wait when a channel or its
    connection ends.

    Besides its own errors they are a bare ``Exception``, when the connection's end was read with
    its last frames, and a ``CancelledError`` in a task that nobody cancelled, after missed
    heartbeats and when we close it. What the broker says to what was published, and the errors by
    which it ends a channel, pass as they are.
    """
    task = asyncio.current_task()
    cancelling = task.cancelling() if task else 0
    try:
        yield
    except (DeliveryError, AMQPChannelError, ConnectionFrameError, ConnectionNotAllowed):
        raise
    except asyncio.CancelledError as error:
        if not resource.is_closed or (task and task.cancelling() > cancelling):
            raise
        raise LinkLost("the connection to the broker is gone") from error
    except Exception as error:
        if not resource.is_closed and not isinstance(error, (AMQPError, ConnectionError, RuntimeError)):
            raise
        raise LinkLost(str(error)) from error


async def _close(connection: AbstractConnection) -> None:
    with suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await connection.close()
