"""Makes the publications: replies, dead-letter copies and events, which go to a queue by its name,
and states, which go to an exchange. Knows no sockets.
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
from worker.contract.flow_run import FlowRun, FlowRunState
from worker.contract.message import (
    DIRECT_REPLY_TO,
    ERROR_HEADER,
    ERROR_STATUS_HEADER,
    ERROR_TRACE_HEADER,
    FAILED_AT_HEADER,
    HEADERS_DROPPED_HEADER,
    ORIGINAL_PREFIX,
    ROUTING_HEADERS,
    Message,
)
from worker.contract.states import STATE_MESSAGE, routing_key

APP_ID = "flow-run-worker"
PERSISTENT = b"\2"  # the property's byte

RAW_PROPERTIES_HEADER = f"{ORIGINAL_PREFIX}properties"
DELIVERY_MODE_HEADER = f"{ORIGINAL_PREFIX}delivery-mode"
USER_HEADER = f"{ORIGINAL_PREFIX}user-id"

# Characters of a reason that fits the smallest frame (4 KiB) beside properties of 255 bytes each.
MAX_SHORT_ERROR = 100

_SECONDS = struct.Struct(">Q")
_INTEGER = struct.Struct(">ci")
_NO_HEADERS = bytes(4)
_JSON = props.short_string("application/json")
_APP_ID = props.short_string(APP_ID)
_TYPES = {kind: props.short_string(kind) for kind in ("flow_run", "error", STATE_MESSAGE)}
# The type of a dead letter that is an event. It goes back to the outbox when it is replayed.
EVENT_TYPE = "prefect_event"
# The number of events in a message of the outbox.
EVENTS_HEADER = "events"

_process = uuid4().hex
_numbers = count(1)


def new_message_id() -> str:
    """A message id that is unique across processes."""
    return f"{_process}.{next(_numbers)}"


def is_mandatory(queue: str) -> bool:
    """True if a publication must be returned when no queue takes it: always but for direct replies.

    RabbitMQ returns every mandatory message to a direct reply-to, delivered or not, since it is
    routed to no queue (``rabbit_exchange:route`` and ``rabbit_channel:deliver_reply`` up to
    4.1). The return would show nothing, and send each reply twice.
    """
    return not queue.startswith(DIRECT_REPLY_TO)


def reply(
    message: Message,
    *,
    status: int,
    body: bytes,
    now: datetime,
    error: str | None = None,
    traceparent: str | None = None,
) -> Publication:
    """The reply to a request that named a reply queue.

    Args:
        error: the reason, in one line, for the header ``x-error``.
        traceparent: of the reply's span.
    """
    values = {"content_type": _JSON, "headers": _status_header(status), "delivery_mode": PERSISTENT}
    if error is not None or traceparent is not None:
        more = {ERROR_HEADER: error, "traceparent": traceparent}
        present = {name: value for name, value in more.items() if value is not None}
        values["headers"] = _table({"status": status, **present})
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
    """Write an integer with 32 bits. pamqp prefers shorter types, but RabbitMQ's STOMP adapter
    leaves those out.
    """
    return _INTEGER.pack(b"I", value) if type(value) is int else encode_table_value(value)


def dead_letter_copy(
    message: Message,
    *,
    queue: str,
    status: int,
    error: str,
    now: datetime,
    frame_max: int,
    traceparent: str | None = None,
) -> Publication:
    """The dead letter of a refused request: the whole message, with the reason in its headers.

    Its properties stay as they came, byte for byte. Those that would lose or misdirect the copy
    move into headers ``x-original-NAME``: ``expiration`` (it would expire), ``user_id`` (the broker
    closes the channel over any name but our login's), ``CC`` and ``BCC`` (it would also go to those
    queues). Unreadable properties are left out, since readers of dead letters could not read them
    either. All original properties are then kept as bytes in ``x-original-properties``. Headers
    that don't fit into a frame together with the reason are dropped.

    Args:
        frame_max: the largest frame in bytes.
        traceparent: of the request's span.
    """
    moved: dict[str, Any] = {}
    kept: list[tuple[str, bytes]] = []
    try:
        values = props.split(message.raw_properties)
    except ValueError:
        values = {}
    # One unreadable header drops them all. An empty table differs from none, so its bytes are kept.
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
    if traceparent is not None:
        reason[ERROR_TRACE_HEADER] = traceparent
    if table := values.get("headers"):
        try:
            kept = props.split_table(table)
        except ValueError as failure:
            reason[HEADERS_DROPPED_HEADER] = str(failure)[:MAX_LINE]
    kept = [
        (_original(name) if name in ROUTING_HEADERS else name, value)
        for name, value in kept
        # A producer must not set the headers that say how to replay the message.
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
    """A message of the outbox: the JSON list of events that Prefect's API takes.

    Args:
        events: each as JSON.
        login: the publishing user. The broker checks it.
    """
    headers = _table({EVENTS_HEADER: len(events)})
    return Publication(queue, _of_fleet(time.time(), login, headers=headers), b"[%b]" % b",".join(events))


def state_message(exchange: str, run: FlowRun, state: FlowRunState, body: bytes) -> Publication:
    """The message with a state of a run.

    Args:
        body: the record, as :func:`worker.contract.record.encode_state` writes it.
    """
    values = {
        "content_type": _JSON,
        "delivery_mode": PERSISTENT,
        "message_id": props.short_string(str(state.id)),
        "timestamp": _SECONDS.pack(int(state.timestamp.timestamp())),
        "type": _TYPES[STATE_MESSAGE],
        "app_id": _APP_ID,
    }
    key = routing_key(state.type, run.flow_id, run.deployment_id, run.id)
    return Publication(key, props.join(values), body, mandatory=False, exchange=exchange)


def cursor_message(queue: str, cursor: bytes, login: str | None) -> Publication:
    """The cursor's message: how far states were published.

    Args:
        login: as for :func:`events_message`.
    """
    return Publication(queue, _of_fleet(time.time(), login), cursor)


def _of_fleet(at: float, login: str | None, **values: bytes) -> bytes:
    """The properties of a message that workers read.

    Args:
        at: seconds since 1970.
        login: the publishing user, which the broker checks.
    """
    values |= {"content_type": _JSON, "delivery_mode": PERSISTENT, "timestamp": _SECONDS.pack(int(at))}
    values["app_id"] = _APP_ID
    if login is not None:
        values["user_id"] = props.short_string(login)
    return props.join(props.in_order(values))


def refused_event(
    event: bytes, *, queue: str, status: int, error: str, now: datetime, login: str | None
) -> Publication:
    """The dead letter of an event that Prefect's API refuses, with the usual headers.

    Args:
        login: as for :func:`events_message`.
    """
    properties = _of_fleet(
        now.timestamp(),
        login,
        headers=_table(_reason(status, error[:MAX_LINE], now)),
        message_id=props.short_string(new_message_id()),
        type=props.short_string(EVENT_TYPE),
    )
    return Publication(queue, properties, event)


def _reason(status: int, error: str, now: datetime) -> dict[str, Any]:
    """The headers that give a dead letter's reason."""
    return {ERROR_STATUS_HEADER: status, ERROR_HEADER: error, FAILED_AT_HEADER: now.isoformat()}


def _original(name: str) -> str:
    return ORIGINAL_PREFIX + name.lower().replace("_", "-")
