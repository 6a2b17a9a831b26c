"""Makes messages and deliveries from their bytes."""

from typing import Any

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from worker.amqp.plain import raw_properties
from worker.amqp.properties import read
from worker.amqp.transport import Connection
from worker.contract.delivery import Delivery
from worker.contract.message import Message


def read_message(raw: bytes, body: bytes, *, redelivered: bool = False) -> Message:
    """Make a message from its properties and its body. Raises nothing.

    An unreadable property is None, an unreadable header keeps its bytes. ``Message.unreadable`` has
    the reasons.

    Args:
        raw: flags and properties, as in a content header.
    """
    unreadable: dict[str, str] = {}
    found: dict[str, Any] = read(raw, unreadable)
    found.pop("cluster_id", None)
    headers = found.pop("headers", None) or {}
    return Message(body, headers, **found, redelivered=redelivered, raw_properties=raw, unreadable=unreadable)


def delivery_of(
    connection: Connection, channel: AbstractChannel, incoming: AbstractIncomingMessage
) -> Delivery:
    """The delivery of a message that aio-pika read, with its original properties. Call it once."""
    raw = raw_properties(connection, channel, incoming)
    message = read_message(raw, incoming.body, redelivered=bool(incoming.redelivered))
    return Delivery(incoming.delivery_tag or 0, message)
