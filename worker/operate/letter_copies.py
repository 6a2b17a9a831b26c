"""Makes the publications that take a dead letter's place. Knows no queue."""

import struct

from worker.amqp.properties import in_order, join, join_table, split, split_table
from worker.amqp.publication import Publication
from worker.broker.messages import (
    APP_ID,
    DELIVERY_MODE_HEADER,
    EVENT_TYPE,
    RAW_PROPERTIES_HEADER,
    USER_HEADER,
)
from worker.contract.message import DELIVERY_COUNT_HEADER, HEADERS_DROPPED_HEADER, Message, is_own_header

# Properties that a replay leaves out: a dead letter has lost its ``expiration``, and RabbitMQ
# refuses another user's ``user_id``.
_NOT_SENT_AGAIN = frozenset({"expiration", "user_id"})


def is_event(message: Message) -> bool:
    """Whether a letter looks like an event that Prefect's API refused."""
    return (message.app_id, message.type) == (APP_ID, EVENT_TYPE)


def sent_again(message: Message, queue: str) -> Publication:
    """A dead letter as its producer sent it, byte for byte.

    ``expiration``, another user's ``user_id``, ``CC`` and ``BCC`` are not restored.

    Raises:
        ValueError: its properties or headers could not be kept.
    """
    if HEADERS_DROPPED_HEADER in message.headers:
        raise ValueError("its headers could not be kept")
    raw = message.headers.get(RAW_PROPERTIES_HEADER)
    try:
        values = split(bytes(raw) if isinstance(raw, bytearray) else message.raw_properties)
    except ValueError as error:
        raise ValueError("its properties could not be kept") from error
    table = values.pop("headers", None)
    own = [(name, value) for name, value in split_table(table or bytes(4)) if is_own_header(name)]
    if own or table == bytes(4):
        values["headers"] = join_table(own)
    mode = message.headers.get(DELIVERY_MODE_HEADER)
    if raw is None and isinstance(mode, bytearray):  # empty: the request had none
        values |= {"delivery_mode": bytes(mode)}
    present = {name: value for name, value in values.items() if value and name not in _NOT_SENT_AGAIN}
    return Publication(queue, join(in_order(present)), message.body)


def counted_anew(message: Message, queue: str) -> Publication:
    """A copy of a dead letter without its delivery count. A header replaces ``user_id``, which the
    broker accepts only from that user.
    """
    values = split(message.raw_properties)
    headers = [each for each in split_table(values["headers"]) if each[0] != DELIVERY_COUNT_HEADER]
    if user := values.pop("user_id", b"")[1:]:
        headers.append((USER_HEADER, b"S" + struct.pack(">I", len(user)) + user))
    values["headers"] = join_table(headers)
    return Publication(queue, join(in_order(values)), message.body)
