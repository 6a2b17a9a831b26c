"""A request as it was published, not yet decoded, and its fingerprint. Knows no broker library."""

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import field
from datetime import datetime
from typing import Any
from urllib.parse import unquote
from uuid import UUID

from .immutable import immutable

DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"
# Prefixes of queue addresses in RabbitMQ's other protocols, and how to unescape the name.
_ADDRESSES: Mapping[str, Callable[[str], str]] = {
    # STOMP (``rabbit_routing_util:unescape``).
    **dict.fromkeys(("/queue/", "/amq/queue/"), lambda name: name.replace("%2F", "/")),
    # AMQP 1.0 since RabbitMQ 4.
    "/queues/": unquote,
}
# RabbitMQ's value of the property ``type`` for an AMQP 1.0 body that is not plain bytes.
AMQP_1_0_BODY = "amqp-1.0"

# The largest message that a broker accepts, in bytes: RabbitMQ 4's default. RabbitMQ 3's is larger.
MAX_MESSAGE_SIZE = 16 * 1024 * 1024
# Set by quorum queues from the second delivery on.
DELIVERY_COUNT_HEADER = "x-delivery-count"
# Headers of our replies and dead letters.
ERROR_STATUS_HEADER = "x-error-status"
ERROR_HEADER = "x-error"
FAILED_AT_HEADER = "x-failed-at"
# The trace context of the span in which a worker refused the request. The letter keeps the
# request's own traceparent.
ERROR_TRACE_HEADER = "x-error-traceparent"
HEADERS_DROPPED_HEADER = "x-headers-dropped"
# Prefix of a dead letter's headers for properties of the request that it can't have itself.
ORIGINAL_PREFIX = "x-original-"

# Headers that a broker adds (redelivery, dead-lettering, exchanges), and those of our dead letters.
# A replayed message does not have them.
_ADDED_PREFIXES = ("x-first-death-", "x-last-death-", "x-opt-", ORIGINAL_PREFIX)
# Further queues that get the message (RabbitMQ's sender-selected distribution).
ROUTING_HEADERS = frozenset({"CC", "BCC"})
_ADDED = frozenset(
    {
        "x-death",
        DELIVERY_COUNT_HEADER,
        "x-acquired-count",
        ERROR_HEADER,
        ERROR_STATUS_HEADER,
        FAILED_AT_HEADER,
        ERROR_TRACE_HEADER,
        HEADERS_DROPPED_HEADER,
    }
)
# Headers that a hop or an instrumentation rewrites each time it sends a message, in lower case. A
# replayed message keeps them, but the fingerprint leaves them out.
_WRITTEN_ANEW_PREFIXES = (
    # Trace context: B3, Datadog, Instana, Jaeger, OpenTracing, Sentry, EagleEye, Pinpoint.
    *("x-b3-", "x-datadog-", "x-instana-", "uberctx-", "ot-tracer-", "ot-baggage-", "sentry-"),
    *("eagleeye-", "pinpoint-"),
    # RabbitMQ's shovels, and Spring's recoverer, which moves a failed message to another queue.
    *("x-shovelled", "x-exception-"),
)
# RabbitMQ writes this header together with the property ``timestamp`` (the interceptor
# ``set_header_timestamp``, and the plugin before it).
_ENTERED_AT = "timestamp_in_ms"
_LENGTHS = struct.Struct(">QQ")
_SIZE = struct.Struct(">cQ")
_NONE = _LENGTHS.pack(len(b"NoneType"), len(b"None")) + b"NoneTypeNone"
_WRITTEN_ANEW = frozenset(
    (
        # W3C Trace Context and Baggage, their predecessors in .NET, and B3 in one header.
        *("traceparent", "tracestate", "traceresponse", "baggage", "correlation-context", "request-id"),
        *("diagnostic-id", "mt-activity-id", "b3"),
        # Jaeger, AWS X-Ray, Google Cloud, OpenCensus, LightStep, Datadog's Data Streams, Elastic,
        # SkyWalking, New Relic, Dynatrace, AppDynamics, SolarWinds.
        *("uber-trace-id", "jaeger-baggage", "jaeger-debug-id", "x-amzn-trace-id", "awstraceheader"),
        *("x-cloud-trace-context", "grpc-trace-bin", "x-ot-span-context"),
        *("dd-pathway-ctx", "dd-pathway-ctx-base64", "elastic-apm-traceparent"),
        *("sw8", "sw8-correlation", "sw8-x", "newrelic", "newrelicid", "newrelictransaction"),
        *("x-dynatrace", "dtdtracetaginfo", "singularityheader", "x-trace", "x-trace-options"),
        *("x-trace-id", "x-span-id"),
        # CloudEvents (extension Distributed Tracing), in both forms of their headers.
        *("cloudevents:traceparent", "cloudevents:tracestate"),
        *("cloudevents_traceparent", "cloudevents_tracestate"),
        # RabbitMQ: interceptors, federation, shovels to AMQP 1.0, streams.
        *(_ENTERED_AT, "x-routed-by", "x-received-from"),
        *("shovelled-by", "shovel-type", "shovel-name", "shovel-vhost", "x-stream-offset"),
        # Spring AMQP's template, for confirms and returns.
        *("spring_returned_message_correlation", "spring_listener_return_correlation"),
    )
)


@immutable
class Message:
    """A message with its AMQP 0-9-1 properties, each None where the producer set none.

    Attributes:
        body: the payload.
        headers: AMQP headers, with the client library's types.
        redelivered: whether the broker has delivered it before.
        raw_properties: the received flags and properties in AMQP's encoding.
        unreadable: why a property could not be read and is None, by its name; ``headers.NAME`` for
            a header, ``properties`` for all after the last readable one.
    """

    body: bytes
    headers: Mapping[str, Any]
    content_type: str | None = None
    content_encoding: str | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    message_id: str | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    expiration: str | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    timestamp: datetime | None = None
    redelivered: bool = False
    raw_properties: bytes = b"\0\0"
    unreadable: Mapping[str, str] = field(default_factory=dict)


def fingerprint(message: Message, *more: str | None) -> UUID:
    """A hash of a message with a ``message_id``: of its body and all properties that its producer
    set.

    A redelivery and a producer's retry have the same fingerprint, even through a shovel, a
    federation link or an instrumented client. Different messages that share a ``message_id`` have
    different ones. The broker rewrites a direct reply-to for each connection, so only its fixed
    part counts.

    Args:
        more: what the run depends on besides the message.

    Returns:
        A UUID of version 8 (RFC 9562), made from 122 bits of a BLAKE2b hash.
    """
    reply_to = message.reply_to
    if reply_to is not None and reply_to.startswith(DIRECT_REPLY_TO):
        reply_to = DIRECT_REPLY_TO
    own = {name: value for name, value in message.headers.items() if _identifies(name)}
    # Leave out the broker's own timestamp: it differs each time the message arrives.
    timestamp = None if _ENTERED_AT in message.headers else message.timestamp
    values = (
        message.body,
        message.content_type,
        message.content_encoding,
        reply_to,
        message.correlation_id,
        message.message_id,
        message.type,
        # user_id and expiration: a replayed dead letter has lost them.
        None,
        message.app_id,
        None,
        message.delivery_mode,
        message.priority,
        timestamp,
        own,
        *more,
    )
    parts: list[bytes] = []
    for value in values:
        _encode(value, parts)
    # In one go: an update for each part takes 3 us more.
    digest = hashlib.blake2b(b"".join(parts), digest_size=16, person=b"flow-run-message")
    hashed = int.from_bytes(digest.digest())
    return UUID(int=hashed & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62)


def reply_queues(reply_to: str) -> tuple[str, ...]:
    """The queues that a ``reply_to`` may mean, in the order of the tries: first the name as it is,
    then as an address in STOMP or AMQP 1.0.
    """
    for prefix, read in _ADDRESSES.items():
        if reply_to.startswith(prefix) and len(reply_to) > len(prefix):
            return reply_to, read(reply_to.removeprefix(prefix))
    return (reply_to,)


def is_own_header(name: str) -> bool:
    """Whether a replayed message keeps a header. Headers of a broker, of dead letters and of the
    routing are dropped.
    """
    return name not in _ADDED and name not in ROUTING_HEADERS and not name.startswith(_ADDED_PREFIXES)


def _identifies(name: str) -> bool:
    """Whether a header belongs to the fingerprint: a replay keeps it, and no hop rewrites it."""
    lowered = name.lower()
    return (
        is_own_header(name)
        and lowered not in _WRITTEN_ANEW
        and not lowered.startswith(_WRITTEN_ANEW_PREFIXES)
    )


def _encode(value: Any, parts: list[bytes]) -> None:
    """Add a value as unambiguous bytes: type, length, content. Mappings are sorted by key."""
    if value is None:  # most properties
        parts.append(_NONE)
        return
    if isinstance(value, str):
        content = value.encode("utf-8", "surrogatepass")
    elif isinstance(value, (bytes, bytearray)):
        content = bytes(value)
    elif isinstance(value, dict):
        parts.append(_SIZE.pack(b"m", len(value)))
        for key in sorted(value, key=str):
            _encode(key, parts)
            _encode(value[key], parts)
        return
    elif isinstance(value, (list, tuple)):
        parts.append(_SIZE.pack(b"l", len(value)))
        for item in value:
            _encode(item, parts)
        return
    else:
        content = str(value).encode("utf-8", "surrogatepass")
    # bytes and bytearray are the same: the type depends on how often a value was read.
    name = b"bytes" if isinstance(value, bytearray) else type(value).__name__.encode()
    parts += (_LENGTHS.pack(len(name), len(content)), name, content)
