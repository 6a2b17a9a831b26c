"""One consumer of the outbox. The broker lets one worker consume at a time. Knows no API."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from worker.amqp.transport import Connection
from worker.broker.connection import ChannelLost, lost_with
from worker.broker.incoming import delivery_of
from worker.broker.login import login_of
from worker.broker.publisher import Publisher
from worker.contract.immutable import immutable
from worker.contract.message import Message
from worker.tasks.mailbox import Mailbox

# Most messages to hold at once. Each has the events of one batch, in quiet times just one. With
# several messages, many events go in one request when the API is back.
PREFETCH = 20


@immutable
class Taken:
    """A message of the outbox.

    Attributes:
        incoming: acknowledges the message. Its properties are not decoded.
        message: the message with its properties.
    """

    incoming: AbstractIncomingMessage
    message: Message


class Stay:
    """One consumer of the outbox, until its channel ends.

    Attributes:
        messages: the received messages, until consuming ends.
        publisher: publishes dead letters.
        lost: the reason for the channel's end.
        acknowledged: whether any message was acknowledged.
        count: messages in the outbox, with those held here.
        login: the worker's login at the broker. None if the broker does not report it.
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
        self.publisher = publisher
        self.login = login
        self.lost = ChannelLost("closed by the worker")
        self.messages_are_lost = False
        self.acknowledged = False
        self.count = 0
        self._connection = connection
        self._channel = channel
        self._queue = queue
        # The publication time of each held message, in seconds since 1970, by its tag.
        self._held: dict[int, float] = {}
        self._tag: str | None = None

    @classmethod
    async def begin(cls, connection: Connection, queue: str) -> "Stay":
        """Start to consume.

        Raises:
            ChannelLost: the broker refuses it.
        """
        channel = await connection.channel(publisher_confirms=False)
        with lost_with(channel):
            outbox = await channel.get_queue(queue, ensure=False)
        publisher = Publisher(connection, await connection.channel())
        stay = cls(connection, channel, outbox, publisher, await login_of(connection))
        channel.close_callbacks.add(stay._closed)
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(stay._cancelled)
        with lost_with(channel):
            await channel.set_qos(PREFETCH)
            stay._tag = await outbox.consume(stay._came)
        return stay

    def age(self) -> float:
        """The age of the oldest waiting event, in seconds. 0 if none waits."""
        return max(0.0, time.time() - next(iter(self._held.values()))) if self._held else 0.0

    async def keep_count(self, every: float) -> None:
        """Count the messages of the outbox, with pauses of this many seconds."""
        while True:
            with suppress(ChannelLost):
                with lost_with(self._channel):
                    declared = (await self._channel.get_queue(self._queue.name)).declaration_result
                self.count = (declared.message_count or 0) + len(self._held)
            await asyncio.sleep(every)

    async def acknowledge(self, messages: Sequence[Taken]) -> None:
        """Acknowledge all messages up to the last of these."""
        with lost_with(self._channel):
            await messages[-1].incoming.ack(multiple=True)
        self.acknowledged = True
        for taken in messages:
            self._held.pop(taken.incoming.delivery_tag or 0, None)

    async def cancel(self) -> None:
        """Stop consuming."""
        with suppress(ChannelLost), lost_with(self._channel):
            if self._tag is not None:
                await self._queue.cancel(self._tag)
        self.messages.close()

    async def _came(self, incoming: AbstractIncomingMessage) -> None:
        message = delivery_of(self._connection, self._channel, incoming).message
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
