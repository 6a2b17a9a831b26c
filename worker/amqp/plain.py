"""Reads and writes one message at a time, by documented calls of aio-pika and aiormq. It serves for
finding faults, and on short-lived channels.
"""

import asyncio
from collections.abc import Sequence

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, DeliveryError
from pamqp.commands import Basic

from .properties import short_string
from .publication import Confirm, Outgoing, Unconfirmed
from .reading import Consume, OnDelivery
from .transport import Connection


def read(connection: Connection, channel: AbstractChannel, on_delivery: OnDelivery) -> Consume:
    """As :func:`worker.amqp.reading.read`."""

    async def consume(incoming: AbstractIncomingMessage) -> None:
        properties = raw_properties(connection, channel, incoming)
        route = short_string(incoming.exchange or "") + short_string(incoming.routing_key or "")
        tag, redelivered = incoming.delivery_tag or 0, bool(incoming.redelivered)
        on_delivery(tag, properties, incoming.body, redelivered, route)

    return consume


def raw_properties(
    connection: Connection, channel: AbstractChannel, incoming: AbstractIncomingMessage
) -> bytes:
    """The properties, as bytes from the wire, of a message that aio-pika read. Call it once."""
    return connection.frames.properties.pop((channel.number or 0, incoming.delivery_tag or 0))


class Writer:
    """As :class:`worker.amqp.writing.Writer`. Each publication has its own task, since aiormq's
    ``basic_publish`` waits for the confirm.
    """

    def __init__(self, connection: Connection, channel: AbstractChannel) -> None:
        self._channel = channel
        self.unconfirmed = Unconfirmed()
        self._next = 1
        self._tasks: set[asyncio.Task[None]] = set()
        connection.frames.on_return[channel.number or 0] = self.unconfirmed.returned

    async def write(self, outgoing: Sequence[Outgoing]) -> None:
        """As :meth:`worker.amqp.writing.Writer.write`, but raises nothing for an ended channel."""
        for each in outgoing:
            self.unconfirmed.add(self._next, each)
            task = asyncio.create_task(self._publish(self._next, each))
            self._next += 1
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def end(self) -> None:
        """Wait no longer for confirms: aiormq may wait for ever once the connection has ended."""
        for task in self._tasks:
            task.cancel()

    async def _publish(self, number: int, outgoing: Outgoing) -> None:
        publication = outgoing.publication
        try:
            channel = await self._channel.get_underlay_channel()
            await channel.basic_publish(
                publication.body,
                exchange=publication.exchange,
                routing_key=publication.queue,
                properties=WrittenProperties(publication.properties),
                mandatory=publication.mandatory,
            )
        except DeliveryError:
            self.unconfirmed.confirm(number, Confirm.NACK)
        except Exception as error:
            if not (self._channel.is_closed or isinstance(error, CONNECTION_EXCEPTIONS)):
                raise
        else:
            # If the publication was returned, it is confirmed already, and this changes nothing.
            self.unconfirmed.confirm(number, Confirm.ACK)


class WrittenProperties(Basic.Properties):
    """Properties for aiormq whose bytes exist already."""

    def __init__(self, written: bytes) -> None:
        super().__init__()
        self._written = written

    def marshal(self) -> bytes:
        """Called by pamqp when it writes a content header."""
        return self._written
