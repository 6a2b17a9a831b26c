"""Stays at a queue that the broker hands to one consumer at a time, such as the outbox of events.
Knows neither the messages nor their use.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress

import structlog
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from worker.amqp.transport import Connection
from worker.broker.connection import BrokerRefused, BrokerUnavailable, ChannelLost, connected, lost_with
from worker.broker.incoming import delivery_of
from worker.broker.login import login_of
from worker.broker.publisher import Publisher
from worker.broker.topology import Topology, TopologyMismatch
from worker.contract.immutable import immutable
from worker.contract.message import Message
from worker.tasks.backoff import Backoff
from worker.tasks.mailbox import Mailbox

log = structlog.get_logger(__name__)


class HandedBack(Exception):
    """Messages can't be held any longer. They return to the broker, for another worker."""


@immutable
class Taken:
    """A message of the queue.

    Attributes:
        incoming: acknowledges the message. Its properties are not decoded.
        message: the message with its properties.
    """

    incoming: AbstractIncomingMessage
    message: Message


class Stay:
    """One consumer of the queue, until its channel ends.

    Attributes:
        messages: the received messages, until consuming ends.
        connection: serves this stay only.
        publisher: publishes on this connection.
        lost: the reason for the channel's end.
        acknowledged: whether any message was acknowledged.
        count: messages in the queue, with those held here.
        login: the worker's login at the broker. None if the broker does not report it.
        was_empty: at the start the queue had neither a message nor another consumer.
    """

    def __init__(
        self,
        connection: Connection,
        channel: AbstractChannel,
        queue: AbstractQueue,
        publisher: Publisher,
        login: str | None,
    ) -> None:
        self.messages: Mailbox[Taken] = Mailbox(lambda taken: len(taken.message.body))
        self.connection = connection
        self.publisher = publisher
        self.login = login
        self.lost = ChannelLost("closed by the worker")
        self.messages_are_lost = False
        self.acknowledged = False
        self.count = 0
        declared = queue.declaration_result
        self.was_empty = not (declared.message_count or declared.consumer_count)
        self._channel = channel
        self._queue = queue
        # The publication time of each held message, in seconds since 1970, by its tag.
        self._held: dict[int, float] = {}
        self._tag: str | None = None

    @classmethod
    async def begin(cls, connection: Connection, queue: str, prefetch: int, *, bulk: bool = False) -> "Stay":
        """Start to consume.

        Args:
            prefetch: most messages to hold at once.
            bulk: publish in bulk; see :mod:`worker.amqp`.

        Raises:
            ChannelLost: the broker refuses it.
        """
        channel = await connection.channel(publisher_confirms=False)
        with lost_with(channel):
            looked_at = await channel.get_queue(queue)
        publisher = Publisher(connection, await connection.channel(), bulk=bulk)
        stay = cls(connection, channel, looked_at, publisher, await login_of(connection))
        channel.close_callbacks.add(stay._closed)
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(stay._cancelled)
        with lost_with(channel):
            await channel.set_qos(prefetch)
            stay._tag = await looked_at.consume(stay._came)
        return stay

    def age(self) -> float:
        """The age of the oldest held message, in seconds. 0 if none is held."""
        return max(0.0, time.time() - next(iter(self._held.values()))) if self._held else 0.0

    async def keep_count(self, every: float) -> None:
        """Count the messages of the queue, with pauses of this many seconds."""
        while True:
            with suppress(ChannelLost):
                with lost_with(self._channel):
                    declared = (await self._channel.get_queue(self._queue.name)).declaration_result
                self.count = (declared.message_count or 0) + len(self._held)
            await asyncio.sleep(every)

    def is_of_fleet(self, message: Message, others: Collection[str]) -> bool:
        """Whether a worker of the fleet wrote a message, by the ``user_id`` that the broker checks.
        True if the broker does not report logins.

        Args:
            others: the logins of the fleet's other workers.
        """
        return self.login is None or message.user_id == self.login or message.user_id in others

    async def acknowledge(self, messages: Sequence[Taken], *, multiple: bool = True) -> None:
        """Acknowledge these messages.

        Args:
            multiple: they are all that are held up to the last of them, and take one frame.
        """
        for taken in messages[-1:] if multiple else messages:
            with lost_with(self._channel):
                await taken.incoming.ack(multiple=multiple)
        self.acknowledged = self.acknowledged or bool(messages)
        for taken in messages:
            self._held.pop(taken.incoming.delivery_tag or 0, None)

    async def cancel(self) -> None:
        """Stop consuming."""
        with suppress(ChannelLost), lost_with(self._channel):
            if self._tag is not None:
                await self._queue.cancel(self._tag)
        self.messages.close()

    async def _came(self, incoming: AbstractIncomingMessage) -> None:
        message = delivery_of(self.connection, self._channel, incoming).message
        published = message.timestamp
        self._held[incoming.delivery_tag or 0] = published.timestamp() if published else time.time()
        self.messages.put(Taken(incoming, message))

    async def _closed(self, _: object, error: BaseException | None) -> None:
        self._end(ChannelLost(error))

    def _cancelled(self, _: object) -> None:
        self._end(ChannelLost("the broker cancelled the consumer: its queue was deleted or moved"))

    def _end(self, reason: ChannelLost) -> None:
        self.lost = reason
        self.messages_are_lost = True
        self.messages.close()


class Place:
    """A queue at which a task stays until the worker stops: one :class:`Stay` after the other.

    Args:
        urls: the broker's.
        topology: is declared first.
        queue: its name.
        name: the connections' name in the management UI.
        prefetch, bulk: as for :meth:`Stay.begin`.
        stopping: once set, the consumer is cancelled.
        on_lost: called with the reason for which messages are not handed out.
    """

    def __init__(
        self,
        urls: str,
        topology: Topology,
        queue: str,
        *,
        name: str,
        prefetch: int,
        stopping: asyncio.Event,
        on_lost: Callable[[str], None],
        bulk: bool = False,
    ) -> None:
        self._urls = urls
        self._topology = topology
        self._queue = queue
        self._name = name
        self._prefetch = prefetch
        self._bulk = bulk
        self._stopping = stopping
        self._on_lost = on_lost

    async def keep(self, serve: Callable[[Stay], Awaitable[None]]) -> None:
        """Stay until the worker stops.

        Args:
            serve: serves one stay. It may raise ChannelLost, and HandedBack.
        """
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                await self._stay(serve, backoff)
            except (BrokerUnavailable, BrokerRefused, TopologyMismatch, ChannelLost) as error:
                self._lost(str(error))
            except CONNECTION_EXCEPTIONS as error:
                self._lost(str(ChannelLost(error)))
            except HandedBack:
                pass
            except Exception as error:  # the edge: an error here must not stop the worker
                log.exception("stay_failed", queue=self._queue)
                self._on_lost(repr(error))
            await backoff.sleep(self._stopping)

    def _lost(self, reason: str) -> None:
        if not self._stopping.is_set():
            log.warning("queue_waits_for_broker", queue=self._queue, error=reason)
            self._on_lost(f"the broker does not hand them out: {reason}")

    async def _stay(self, serve: Callable[[Stay], Awaitable[None]], backoff: Backoff) -> None:
        async with connected(self._urls, name=self._name, connection_class=Connection) as connection:
            with lost_with(connection):
                await self._topology.ensure(connection)
                stay = await Stay.begin(connection, self._queue, self._prefetch, bulk=self._bulk)
            stopping = asyncio.create_task(self._close_when_stopping(stay))
            try:
                await serve(stay)
                if not self._stopping.is_set():
                    raise stay.lost
            finally:
                stopping.cancel()
                if stay.acknowledged:
                    backoff.reset()

    async def _close_when_stopping(self, stay: Stay) -> None:
        await self._stopping.wait()
        await stay.cancel()
