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

from pamqp.encode import encode_table_value

from worker.amqp import properties as props
from worker.amqp.publication import Publication
from worker.contract.errors import MAX_LINE
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
_NO_HEADERS = bytes(4)
_JSON = props.short_string("application/json")
_APP_ID = props.short_string(APP_ID)
_TYPES = {kind: props.short_string(kind) for kind in ("flow_run", "error")}
# Of a dead letter that is no request, and goes back to the outbox when it is sent again.
EVENT_TYPE = "prefect_event"
# How many events a message of the outbox has.
EVENTS_HEADER = "events"

_process = uuid4().hex
_numbers = count(1)


def new_message_id() -> str:
    """A message id that no other process gives, and this one once."""
    return f"{_process}.{next(_numbers)}"


def is_mandatory(queue: str) -> bool:
    """Whether a publication is to come back where no queue takes it: always but for direct replies.

    RabbitMQ returns every mandatory message to a direct reply-to, delivered or not, since it is
    routed to no queue (``rabbit_exchange:route`` and ``rabbit_channel:deliver_reply`` up to
    4.1): that would tell nothing, at the price of each reply sent twice.
    """
    return not queue.startswith(DIRECT_REPLY_TO)


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
    queue = message.reply_to or ""
    return Publication(queue, props.join(values), body, is_mandatory(queue))


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
