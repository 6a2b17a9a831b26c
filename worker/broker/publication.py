"""What is published: replies and dead-letter copies, always to a queue by its name; knows no
sockets.
"""

import struct
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import count
from typing import Any
from uuid import uuid4

from pamqp.commands import Basic
from pamqp.encode import encode_table_value

from worker.broker import properties as props
from worker.broker.control import HEAD, METHOD
from worker.broker.transport import BODY, CONTENT, CONTENT_CLASS, END, HEADER
from worker.contract.errors import MAX_LINE
from worker.contract.immutable import immutable
from worker.contract.message import (
    DIRECT_REPLY_TO,
    ERROR_HEADER,
    ERROR_STATUS_HEADER,
    FAILED_AT_HEADER,
    HEADERS_DROPPED_HEADER,
    ORIGINAL_PREFIX,
    ROUTING_HEADERS,
    Message,
)

APP_ID = "flow-run-worker"
PERSISTENT = b"\2"  # as it stands in the property

RAW_PROPERTIES_HEADER = f"{ORIGINAL_PREFIX}properties"
DELIVERY_MODE_HEADER = f"{ORIGINAL_PREFIX}delivery-mode"
USER_HEADER = f"{ORIGINAL_PREFIX}user-id"

# A reason that even the smallest frame (4 KiB) has to hold, beside properties of 255 bytes each.
MAX_SHORT_ERROR = 100

_SECONDS = struct.Struct(">Q")
_INTEGER = struct.Struct(">ci")
_END = bytes((END,))
_NO_HEADERS = bytes(4)
_JSON = props.short_string("application/json")
_APP_ID = props.short_string(APP_ID)
_TYPES = {kind: props.short_string(kind) for kind in ("flow_run", "error")}
# Of a dead letter that is no request, and goes back to the outbox when it is sent again.
EVENT_TYPE = "prefect_event"
# How many events a message of the outbox has.
EVENTS_HEADER = "events"
# Method, two reserved octets, and the default exchange, whose name is empty.
_PUBLISH = struct.pack(">IHB", (CONTENT_CLASS << 16) + 40, 0, 0)
# What a frame takes besides its payload.
_FRAME_OVERHEAD = HEAD.size + len(_END)

_process = uuid4().hex
_numbers = count(1)


def new_message_id() -> str:
    """A message id that no other process gives, and this one once."""
    return f"{_process}.{next(_numbers)}"


@immutable
class Publication:
    """One message to publish to a queue by its name.

    Attributes:
        queue: the routing key on the default exchange.
        properties: flags and properties, as they stand in a content header.
        body: the payload.
    """

    queue: str
    properties: bytes
    body: bytes

    @property
    def mandatory(self) -> bool:
        """Whether it is to come back where no queue takes it: always but for direct replies.

        RabbitMQ returns every mandatory message to a direct reply-to, delivered or not, since it is
        routed to no queue (``rabbit_exchange:route`` and ``rabbit_channel:deliver_reply`` up to
        4.1): that would tell nothing, at the price of each reply sent twice.
        """
        return not self.queue.startswith(DIRECT_REPLY_TO)

    @property
    def size(self) -> int:
        """Size of the body in bytes."""
        return len(self.body)

    def frames(self, channel: int, frame_max: int) -> list[bytes]:
        """The frames of a ``basic.publish`` as bytes; each item has one or more whole ones.

        Raises:
            ValueError: the queue's name is too long, or the properties are larger than a frame.
        """
        self.check(frame_max)
        routing_key = props.short_string(self.queue)
        head = (
            HEAD.pack(METHOD, channel, len(_PUBLISH) + len(routing_key) + 1),
            _PUBLISH,
            routing_key,
            b"\x01" if self.mandatory else b"\x00",
            _END,
            HEAD.pack(HEADER, channel, CONTENT.size + len(self.properties)),
            CONTENT.pack(CONTENT_CLASS, 0, len(self.body)),
            self.properties,
            _END,
        )
        step = frame_max - _FRAME_OVERHEAD
        if 0 < len(self.body) <= step:
            return [b"".join((*head, HEAD.pack(BODY, channel, len(self.body)), self.body, _END))]
        frames = [b"".join(head)]
        for start in range(0, len(self.body), step):
            part = self.body[start : start + step]
            frames.append(b"".join((HEAD.pack(BODY, channel, len(part)), part, _END)))
        return frames

    def check(self, frame_max: int) -> None:
        """Raise ValueError if the properties are larger than a frame."""
        size = CONTENT.size + len(self.properties) + _FRAME_OVERHEAD
        if size > frame_max:
            raise ValueError(f"the properties take {size} bytes and a frame holds {frame_max}")


class WrittenProperties(Basic.Properties):
    """Properties for aio-pika that are written already, to the letter."""

    def __init__(self, written: bytes) -> None:
        super().__init__()
        self._written = written

    def marshal(self) -> bytes:
        """Called by pamqp when it writes a content header."""
        return self._written


def reply(
    message: Message, *, status: int, body: bytes, now: datetime, error: str | None = None
) -> Publication:
    """The reply to a request that named a reply queue.

    Args:
        error: one line for the header ``x-error``: what is wrong.
    """
    values = {"content_type": _JSON, "headers": _status_header(status), "delivery_mode": PERSISTENT}
    if error is not None:
        values["headers"] = _table({"status": status, ERROR_HEADER: error})
    if message.correlation_id is not None:
        values["correlation_id"] = props.short_string(message.correlation_id)
    values["message_id"] = props.short_string(new_message_id())
    values["timestamp"] = _SECONDS.pack(int(now.timestamp()))
    values["type"] = _TYPES["flow_run" if status < 400 else "error"]
    values["app_id"] = _APP_ID
    return Publication(message.reply_to or "", props.join(values), body)


@cache
def _status_header(status: int) -> bytes:
    return _table({"status": status})


def _table(values: Mapping[str, Any], before: Sequence[tuple[str, bytes]] = ()) -> bytes:
    written = ((name, _table_value(value)) for name, value in values.items())
    return props.join_table((*before, *written))


def _table_value(value: Any) -> bytes:
    """An integer gets 32 bits: RabbitMQ's STOMP adapter leaves out the shorter ones, which pamqp
    prefers.
    """
    return _INTEGER.pack(b"I", value) if type(value) is int else encode_table_value(value)


def dead_letter_copy(
    message: Message, *, queue: str, status: int, error: str, now: datetime, frame_max: int
) -> Publication:
    """A refused request, whole, with the reason in its headers.

    Its properties stay as they came, byte for byte, but for those that would lose or misdirect the
    copy, which move into headers ``x-original-NAME``: ``expiration`` (it would expire), ``user_id``
    (the broker closes the channel over any but its own name for our login, which only it knows),
    ``CC`` and ``BCC`` (it would also go to those queues). Properties that can't be read are left
    out, as who reads dead letters could not read them either; all of them then stand in
    ``x-original-properties``, as they came. Where the headers don't fit into a frame together with
    the reason, they are dropped.

    Args:
        frame_max: the largest frame in bytes.
    """
    moved: dict[str, Any] = {}
    kept: list[tuple[str, bytes]] = []
    try:
        values = props.split(message.raw_properties)
    except ValueError:
        values = {}
    # A header that can't be read takes the others with it; an empty table is not the same as none.
    unreadable = {name.partition(".")[0] for name in message.unreadable}
    if values.get("headers") == _NO_HEADERS:
        unreadable.add("headers")
    if unreadable:
        moved[RAW_PROPERTIES_HEADER] = bytearray(message.raw_properties)
        values = {name: value for name, value in values.items() if name not in unreadable}
    if values.get("delivery_mode") != PERSISTENT:
        moved[DELIVERY_MODE_HEADER] = bytearray(values.pop("delivery_mode", b""))
    if values.pop("expiration", b""):
        moved[_original("expiration")] = message.expiration
    if values.pop("user_id", b""):
        moved[USER_HEADER] = message.user_id
    reason = _reason(status, error, now)
    if table := values.get("headers"):
        try:
            kept = props.split_table(table)
        except ValueError as failure:
            reason[HEADERS_DROPPED_HEADER] = str(failure)[:MAX_LINE]
    kept = [
        (_original(name) if name in ROUTING_HEADERS else name, value)
        for name, value in kept
        # What says how to send it again is ours alone to say.
        if name not in (*reason, RAW_PROPERTIES_HEADER, DELIVERY_MODE_HEADER)
    ]
    values["delivery_mode"] = PERSISTENT

    def copy(added: Mapping[str, Any], kept: Sequence[tuple[str, bytes]]) -> Publication:
        own = {**values, "headers": _table(added, before=kept)}
        return Publication(queue, props.join(props.in_order(own)), message.body)

    publication = copy({**moved, **reason}, kept)
    try:
        publication.check(frame_max)
    except ValueError as failure:
        reason |= {HEADERS_DROPPED_HEADER: str(failure), ERROR_HEADER: error[:MAX_SHORT_ERROR]}
        publication = copy(reason, [])
    return publication


def events_message(queue: str, events: Sequence[bytes], login: str | None) -> Publication:
    """Events, each as JSON, as one message of the outbox: the list that Prefect's API takes.

    Args:
        login: the user that publishes; the broker vouches for it.
    """
    values = {
        "content_type": _JSON,
        "headers": _table({EVENTS_HEADER: len(events)}),
        "delivery_mode": PERSISTENT,
        "timestamp": _SECONDS.pack(int(time.time())),
        **_user_id(login),
        "app_id": _APP_ID,
    }
    return Publication(queue, props.join(values), b"[%b]" % b",".join(events))


def _user_id(login: str | None) -> dict[str, bytes]:
    return {} if login is None else {"user_id": props.short_string(login)}


def refused_event(
    event: bytes, *, queue: str, status: int, error: str, now: datetime, login: str | None
) -> Publication:
    """An event that Prefect's API refuses, as a dead letter; its reason stands in the headers of
    any other.

    Args:
        login: as of :func:`events_message`.
    """
    values = {
        "content_type": _JSON,
        "headers": _table(_reason(status, error[:MAX_LINE], now)),
        "delivery_mode": PERSISTENT,
        "message_id": props.short_string(new_message_id()),
        "timestamp": _SECONDS.pack(int(now.timestamp())),
        "type": props.short_string(EVENT_TYPE),
        **_user_id(login),
        "app_id": _APP_ID,
    }
    return Publication(queue, props.join(values), event)


def _reason(status: int, error: str, now: datetime) -> dict[str, Any]:
    """The headers by which a dead letter says why it is one."""
    return {ERROR_STATUS_HEADER: status, ERROR_HEADER: error, FAILED_AT_HEADER: now.isoformat()}


def _original(name: str) -> str:
    return ORIGINAL_PREFIX + name.lower().replace("_", "-")
