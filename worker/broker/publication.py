"""What the worker publishes: replies and dead-letter copies, always through the default exchange; knows no database."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pamqp.encode
import pamqp.frame
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from worker.contract.message import DIRECT_REPLY_TO, ROUTING_HEADERS, Message

APP_ID = "flow-run-worker"
PERSISTENT = 2

ERROR_STATUS_HEADER = "x-error-status"
ERROR_HEADER = "x-error"
FAILED_AT_HEADER = "x-failed-at"
HEADERS_DROPPED_HEADER = "x-headers-dropped"
# Before the name of a property that the copy can't have.
ORIGINAL_PREFIX = "x-original-"
RAW_PROPERTIES_HEADER = f"{ORIGINAL_PREFIX}properties"

# One line in a table or a management page; a longer one also costs room in the header frame.
MAX_ERROR_LINE = 500
# Room that a frame takes besides its payload (type, channel, size, end), and what the exchange leaves for the class,
# weight, size and flags of a header frame.
FRAME_OVERHEAD = 8


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
    properties: spec.Basic.Properties
    body: bytes
    numbered: bool

    def marshal(self, channel_number: int, frame_max: int) -> bytes:
        """The frames of a ``basic.publish``, ready for the wire: mandatory, unless it is a direct reply.

        RabbitMQ returns every mandatory message to a direct reply-to, delivered or not, since it is routed to no queue
        (``rabbit_exchange:route`` and ``rabbit_channel:deliver_reply`` up to 4.1): that would tell nothing, at the price of
        each reply sent twice.

        Raises:
            ValueError, TypeError: a property cannot be written in AMQP, or the header is larger than a frame.
        """
        header = pamqp.frame.marshal(ContentHeader(0, len(self.body), self.properties), channel_number)
        if len(header) > frame_max:
            raise ValueError(f"the properties take {len(header)} bytes and a frame holds {frame_max}")
        mandatory = not self.queue.startswith(DIRECT_REPLY_TO)
        publish = spec.Basic.Publish(exchange="", routing_key=self.queue, mandatory=mandatory)
        frames = [pamqp.frame.marshal(publish, channel_number), header]
        step = frame_max - FRAME_OVERHEAD
        frames.extend(
            pamqp.frame.marshal(ContentBody(self.body[start : start + step]), channel_number)
            for start in range(0, len(self.body), step)
        )
        return b"".join(frames)


def reply(message: Message, *, status: int, body: bytes, now: datetime) -> Publication:
    """The reply to a request that named a reply queue."""
    return Publication(
        queue=message.reply_to or "",
        properties=spec.Basic.Properties(
            content_type="application/json",
            headers={"status": status},
            delivery_mode=PERSISTENT,
            correlation_id=message.correlation_id,
            timestamp=now,
            message_type="flow_run" if status < 400 else "error",
            app_id=APP_ID,
        ),
        body=body,
        numbered=True,
    )


def dead_letter_copy(
    message: Message, *, queue: str, status: int, error: str, now: datetime, login: str | None, frame_max: int
) -> Publication:
    """A refused request, whole, with the reason in its headers.

    Its own properties stay as they were, but for three that would lose or misdirect the copy and move into a header:
    ``expiration`` (it would expire), ``user_id`` of another user (the broker closes the channel over it), and the
    ``CC``/``BCC`` headers (the copy would also go to those queues). Headers that can't be written again are dropped, each by
    itself; or all of them, where they don't fit into a frame together with the reason.
    """
    headers: dict[str, Any] = {
        (f"{ORIGINAL_PREFIX}{name.lower()}" if name in ROUTING_HEADERS else name): value
        for name, value in message.headers.items()
    }
    if message.expiration is not None:
        headers[f"{ORIGINAL_PREFIX}expiration"] = message.expiration
    if message.raw_properties is not None:
        headers[RAW_PROPERTIES_HEADER] = bytearray(message.raw_properties)  # as a byte array; pamqp writes no bytes
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
