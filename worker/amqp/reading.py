"""Reads a channel's deliveries in bulk: from their frames, past aiormq."""

from collections.abc import Awaitable, Callable

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from .frames import BODY, CONTENT, DELIVER, HEADER, METHOD, METHOD_ID, TAG
from .transport import Connection, Observer, Transport

# Called with the delivery tag, properties as in a content header, the body, true for a redelivered
# message, and its exchange and routing key as two short strings. It is called within a read of the
# socket: it must neither wait nor raise.
OnDelivery = Callable[[int, bytes, bytes, bool, bytes], None]
# A consumer's callback for aio-pika.
Consume = Callable[[AbstractIncomingMessage], Awaitable[None]]


def read(connection: Connection, channel: AbstractChannel, on_delivery: OnDelivery) -> Consume:
    """Read a channel's deliveries in bulk. Returns the callback for consuming its queues."""
    number = channel.number or 0
    connection.frames.channels[number] = DeliveryReader(connection.frames, number, on_delivery)
    return _never_called


async def _never_called(_: AbstractIncomingMessage) -> None:
    """The reader takes all deliveries before aio-pika sees them."""


class DeliveryReader(Observer):
    """Assembles a channel's deliveries from their frames: a method, a header, and any number of
    body frames. All other frames go to aiormq.
    """

    def __init__(self, transport: Transport, number: int, on_delivery: OnDelivery) -> None:
        super().__init__(transport, number)
        self._on_delivery = on_delivery
        self._delivers = False
        self._delivery_tag = 0
        self._redelivered = False
        self._route = b""
        self._properties = b""
        self._parts: list[bytes] = []
        self._missing = 0

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bytes | None:
        if kind == METHOD:
            (method,) = METHOD_ID.unpack_from(buffer, start)
            self._delivers = method == DELIVER
        if not self._delivers:
            return super().take(kind, buffer, start, end)
        if kind == METHOD:
            at = start + METHOD_ID.size
            at += 1 + buffer[at]  # the consumer's tag
            (self._delivery_tag,) = TAG.unpack_from(buffer, at)
            at += TAG.size
            self._redelivered = bool(buffer[at])
            self._route = buffer[at + 1 : end]
            return b""
        if kind == BODY:
            self._missing -= end - start
            self._parts.append(buffer[start:end])
        elif kind == HEADER:
            _, _, self._missing = CONTENT.unpack_from(buffer, start)
            self._properties = buffer[start + CONTENT.size : end]
        if not self._missing:
            self._delivers = False
            parts, self._parts = self._parts, []
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            self._on_delivery(self._delivery_tag, self._properties, body, self._redelivered, self._route)
        return b""
