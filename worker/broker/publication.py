"""What the worker publishes: replies and dead-letter copies, always through the default exchange;
knows no database.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Protocol

import pamqp.encode
from pamqp import commands as spec

from worker.broker import frames
from worker.broker.properties import property_flags
from worker.contract.message import DIRECT_REPLY_TO, ROUTING_HEADERS, Message

APP_ID = "flow-run-worker"
PERSISTENT = 2
_PERSISTENT_OCTET = bytes((PERSISTENT,))

ERROR_STATUS_HEADER = "x-error-status"
ERROR_HEADER = "x-error"
FAILED_AT_HEADER = "x-failed-at"
HEADERS_DROPPED_HEADER = "x-headers-dropped"
# Before the name of a property that the copy can't have.
ORIGINAL_PREFIX = "x-original-"
RAW_PROPERTIES_HEADER = f"{ORIGINAL_PREFIX}properties"

# One line in a table or a management page; a longer one also costs room in the header frame.
MAX_ERROR_LINE = 500


_REPLY_FLAGS = property_flags(
    "content_type", "headers", "delivery_mode", "message_id", "timestamp", "message_type", "app_id"
)
_CORRELATION_ID_FLAG = property_flags("correlation_id")
_CONTENT_TYPE = frames.short_string("application/json")
_APP_ID = frames.short_string(APP_ID)
_TYPES = {kind: frames.short_string(kind) for kind in ("flow_run", "error")}
_FLAGS = struct.Struct(">H")
_SECONDS = struct.Struct(">Q")


class Properties(Protocol):
    """AMQP properties; those of pamqp, or ones of our own that are written faster."""

    message_id: str | None

    def marshal(self) -> bytes:
        """Flags and properties, as they stand in a content header."""


@dataclass(slots=True)
class ReplyProperties:
    """The properties of a reply, written field by field: all replies have the same ones, and there
    is one for each request.

    Attributes:
        message_id: set by the channel.
    """

    status: int
    correlation_id: str | None
    timestamp: datetime
    message_id: str | None = None

    def marshal(self) -> bytes:
        """Flags and properties, as they stand in a content header, in the order of AMQP 0-9-1."""
        correlated = self.correlation_id is not None
        return b"".join(
            (
                _FLAGS.pack(_REPLY_FLAGS | _CORRELATION_ID_FLAG if correlated else _REPLY_FLAGS),
                _CONTENT_TYPE,
                _status_header(self.status),
                _PERSISTENT_OCTET,
                frames.short_string(self.correlation_id or "") if correlated else b"",
                frames.short_string(self.message_id or ""),
                _SECONDS.pack(int(self.timestamp.timestamp())),
                _TYPES["flow_run" if self.status < 400 else "error"],
                _APP_ID,
            )
        )


@cache
def _status_header(status: int) -> bytes:
    return pamqp.encode.field_table({"status": status})


@dataclass(frozen=True, slots=True)
class Publication:
    """One message to publish to a queue by its name.

    Attributes:
        queue: the routing key on the default exchange.
        properties: AMQP properties.
        body: the payload.
        numbered: the channel sets ``message_id``, by which a returned publication is known again.
    """

    queue: str
    properties: Properties
    body: bytes
    numbered: bool

    def marshal(self, channel_number: int, frame_max: int) -> bytes:
        """The frames of a ``basic.publish``, ready for the wire: mandatory, unless it is a direct
        reply.

        RabbitMQ returns every mandatory message to a direct reply-to, delivered or not, since it is
        routed to no queue (``rabbit_exchange:route`` and ``rabbit_channel:deliver_reply`` up to
        4.1): that would tell nothing, at the price of each reply sent twice.

        Raises: ValueError, TypeError: a property cannot be written in AMQP, or the header is larger
            than a frame.
        """
        mandatory = not self.queue.startswith(DIRECT_REPLY_TO)
        properties = self.properties.marshal()
        return frames.publish(
            channel_number, self.queue, properties, self.body, mandatory=mandatory, frame_max=frame_max
        )


def reply(message: Message, *, status: int, body: bytes, now: datetime) -> Publication:
    """The reply to a request that named a reply queue."""
    return Publication(
        message.reply_to or "", ReplyProperties(status, message.correlation_id, now), body, numbered=True
    )


def dead_letter_copy(
    message: Message, *, queue: str, status: int, error: str, now: datetime, login: str | None, frame_max: int
) -> Publication:
    """A refused request, whole, with the reason in its headers.

    Its own properties stay as they were, but for three that would lose or misdirect the copy and
    move into a header: ``expiration`` (it would expire), ``user_id`` of another user (the broker
    closes the channel over it), and the ``CC``/``BCC`` headers (the copy would also go to those
    queues). Headers that can't be written again are dropped, each by itself; or all of them, where
    they don't fit into a frame together with the reason.
    """
    headers: dict[str, Any] = {
        (f"{ORIGINAL_PREFIX}{name.lower()}" if name in ROUTING_HEADERS else name): value
        for name, value in message.headers.items()
    }
    if message.expiration is not None:
        headers[f"{ORIGINAL_PREFIX}expiration"] = message.expiration
    if message.raw_properties is not None:
        headers[RAW_PROPERTIES_HEADER] = bytearray(
            message.raw_properties
        )  # as a byte array; pamqp writes no bytes
    user_id = message.user_id
    if user_id is not None and user_id != login:
        headers[f"{ORIGINAL_PREFIX}user-id"] = user_id
        user_id = None
    reason = {
        ERROR_STATUS_HEADER: status,
        ERROR_HEADER: error,
        FAILED_AT_HEADER: now.isoformat(),
    }
    headers, dropped = writable_headers(headers)
    if dropped:
        reason[HEADERS_DROPPED_HEADER] = ", ".join(dropped)[:MAX_ERROR_LINE]
    publication = _copy(message, queue, {**headers, **reason}, user_id)
    try:
        publication.marshal(1, frame_max)
    except (ValueError, TypeError, OverflowError) as failure:  # all of them together are larger than a frame
        reason[HEADERS_DROPPED_HEADER] = " ".join(str(failure).split())[:MAX_ERROR_LINE]
        publication = _copy(message, queue, reason, user_id)
    return publication


def writable_headers(headers: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The headers that can be written as they were read, and the names of those that can't."""
    writable: dict[str, Any] = {}
    dropped: list[str] = []
    for name, value in headers.items():
        try:
            writable[name] = _with_byte_arrays(value)
            pamqp.encode.field_table({name: writable[name]})
        except (ValueError, TypeError, OverflowError, RecursionError, struct.error):
            writable.pop(name, None)
            dropped.append(repr(name))
    return writable, dropped


def _with_byte_arrays(value: Any) -> Any:
    """Text that is no UTF-8 is read as bytes, of which pamqp writes none; a byte array it does."""
    if isinstance(value, bytes):
        return bytearray(value)
    if isinstance(value, Mapping):
        return {name: _with_byte_arrays(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_byte_arrays(each) for each in value]
    return value


def _copy(message: Message, queue: str, headers: Mapping[str, Any], user_id: str | None) -> Publication:
    return Publication(
        queue=queue,
        properties=spec.Basic.Properties(
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=dict(headers),
            delivery_mode=PERSISTENT,
            priority=message.priority,
            correlation_id=message.correlation_id,
            reply_to=message.reply_to,
            message_id=message.message_id,
            timestamp=message.timestamp,
            message_type=message.type,
            user_id=user_id,
            app_id=message.app_id,
        ),
        body=message.body,
        numbered=False,
    )
