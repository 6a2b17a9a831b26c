"""Hostile requests with the expected answer for each. The run puts each at every place of a batch
of good ones.

``python -m tests.faults.hostile`` prints the table: input, our answer, neighbours served.
"""

import asyncio
import json
import random
import re
import sqlite3
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiormq
import pamqp.frame
from aiormq.abc import ChannelFrame
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from tests.support.database import execute, fetch_runs, locked
from tests.support.postgresql import PostgreSQL
from tests.support.producer import Producer, Reply
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess
from worker.store import Store

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
LIMIT = 1_048_576
BATCH = 4
# Messages that are published in one transaction with the broker.
COMMIT_EVERY = 100
# Placeholder in a property for the name of the request queue.
QUEUE = "<queue>"
# A trigger refuses runs of this name, as a user's own trigger may.
REFUSED_NAME = "refused by the database"


@dataclass(frozen=True)
class Hostile:
    """A faulty request.

    Attributes:
        name: the fault.
        body: the published bytes; each message gets its own id for ``<id>``.
        status: of our answer; for a 4xx also of the dead letter.
        properties: AMQP properties, which may override the default ``reply_to`` and
            ``correlation_id``.
        raw: property flags and the properties' bytes, which replace all properties.
        replied: whether a reply can reach the requester.
    """

    name: str
    body: bytes
    status: int
    properties: dict[str, Any] = field(default_factory=dict)
    raw: tuple[int, bytes] | None = None
    replied: bool = True

    @property
    def stored(self) -> bool:
        """Whether it reaches the database, as one of a batch."""
        return self.status < 400 or self.status == 409


def request(**fields: Any) -> bytes:
    return json.dumps({"flow_id": FLOW_ID, **fields}).encode()


def raw_request(fields: bytes) -> bytes:
    """A request with fields that ``json.dumps`` would not write."""
    return b'{"flow_id": "%s", %s}' % (FLOW_ID.encode(), fields)


def filled(before: bytes, unit: bytes, after: bytes, size: int = LIMIT - 100) -> bytes:
    """Repeat the unit to fill this size."""
    return before + unit * ((size - len(before) - len(after)) // len(unit)) + after


def nested(levels: int) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for _ in range(levels):
        table = {"a": table}
    return table


def noise(size: int) -> str:
    """Text that doesn't compress."""
    return "".join(
        random.Random(7).choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", k=size)
    )


def deep_table(levels: int) -> bytes:
    """The bytes of nested tables, deeper than a library would write them; each has one entry
    without a name.
    """
    content = b""
    for _ in range(levels):
        content = b"\x00F" + struct.pack(">I", len(content)) + content
    return struct.pack(">I", len(content)) + content


HEADERS, CORRELATION_ID, TIMESTAMP = 1 << 13, 1 << 10, 1 << 6
GOOD = request()
# For cases without an id in their properties: the name identifies the run.
NAMED = request(name="<id>")
# RabbitMQ's format, with a node that is no member of this cluster.
ELSEWHERE = "amq.rabbitmq.reply-to.g1h2AA9yZXBseUAxMjgyMTEzODAAAAKwAAAAAGsElGo=.aSiJZEuFGqmRJ4JUR3dDOQ=="
ODD_HEADERS = {
    "table": {"of": {"tables": [1, {"x": None}]}},
    "array": [1, "two", [3.0, [bytearray(b"4")]], True],
    "bytes": bytearray(b"\x00\xff\xfe"),
    "time": datetime(1970, 1, 1, tzinfo=UTC),
    "decimal": Decimal("3.14"),
    "wide": 2**62,
    "float": 1.5,
    "nothing": None,
    "text": "\u202e\x1b[31m\r\n\x00",
    "n" * 128: "x" * 10_000,
    "": "no name",
}
# Headers of instrumentations, shovels and federation, well-formed and malformed.
HOPS = {
    "traceparent": {"version": 0},
    "BAGGAGE": bytearray(b"\xff"),
    "x-datadog-trace-id": 2**62,
    "x-shovelled": [{"src-uri": "amqp://elsewhere"}, None],
    "x-received-from": "nowhere",
    "timestamp_in_ms": "now",
    "x-stream-offset": -1,
}

CORPUS: tuple[Hostile, ...] = (
    # Text that no database stores
    Hostile("NUL, escaped, in the name", raw_request(rb'"name": "a\u0000b"'), 422),
    Hostile("NUL, as it is, in the name", raw_request(b'"name": "a\0b"'), 422),
    Hostile("NUL in the name of a parameter", raw_request(rb'"parameters": {"a\u0000": 1}'), 422),
    Hostile("NUL in the idempotency key", raw_request(rb'"idempotency_key": "\u0000"'), 422),
    Hostile("NUL and nothing else", b"\0", 422),
    Hostile("NUL in an unknown field", raw_request(rb'"\u0000": "\u0000"'), 422),
    Hostile("half a surrogate pair in the name", raw_request(rb'"name": "\ud800"'), 422),
    Hostile("half a surrogate pair in the name of a parameter", raw_request(rb'"parameters": {"\udc00": 1}'), 422),
    Hostile("half a surrogate pair in a key deep below", raw_request(rb'"context": {"a": [{"\ud8ff": {}}]}'), 422),
    Hostile("half a surrogate pair in an unknown field", raw_request(rb'"\ud800": 1'), 422),
    Hostile("half a surrogate pair in the state", raw_request(rb'"state": {"type": "PENDING", "message": "\udfff"}'), 422),
    Hostile("half a surrogate pair in a label's name", raw_request(rb'"labels": {"\ud800": []}'), 422),
    Hostile("half a surrogate pair in the idempotency key", raw_request(rb'"idempotency_key": "\ud800"'), 422),
    Hostile("half a surrogate pair in a scheduled time", raw_request(rb'"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "\ud800"}}'), 422),
    Hostile("a surrogate pair the wrong way round", raw_request(rb'"name": "\udc00\ud800"'), 422),
    Hostile("a surrogate in UTF-8", raw_request(b'"name": "\xed\xa0\x80"'), 422),
    # Encodings
    Hostile("invalid UTF-8", raw_request(b'"name": "\xff"'), 400),
    Hostile("overlong UTF-8", raw_request(b'"name": "\xc0\x80"'), 400),
    Hostile("Latin-1", raw_request(b'"name": "M\xfcller"'), 400),
    Hostile("UTF-8 cut off in a character", raw_request(b'"name": "M\xc3'), 400),
    Hostile("UTF-8 with a byte order mark", b"\xef\xbb\xbf" + GOOD, 201),
    Hostile("UTF-16 with a byte order mark", GOOD.decode().encode("utf-16"), 201),
    Hostile("UTF-16 without one", GOOD.decode().encode("utf-16-be"), 201),
    Hostile("UTF-32", GOOD.decode().encode("utf-32"), 201),
    Hostile("a byte order mark and nothing else", b"\xef\xbb\xbf", 422),
    # Not JSON, or not an object
    Hostile("empty body", b"", 422),
    Hostile("spaces", b" " * 1000, 422),
    Hostile("null", b"null", 422),
    Hostile("a list", b"[]", 422),
    Hostile("a string", b'"x"', 422),
    Hostile("a number", b"1", 422),
    Hostile("two objects", GOOD + GOOD, 422),
    Hostile("single quotes", GOOD.replace(b'"', b"'"), 422),
    Hostile("a comma too many", raw_request(b'"tags": ["a",]'), 422),
    Hostile("a pickle", b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.", 400),
    Hostile("spaces around it, up to the limit", b" " * (LIMIT - len(GOOD)) + GOOD, 201),
    # Nesting
    Hostile("10 MB of nesting", b"[" * 10_000_000, 413),
    Hostile("1 MB of nesting, not closed", b"[" * LIMIT, 400),
    Hostile("1 MB of nesting, closed", b"[" * (LIMIT // 2) + b"]" * (LIMIT // 2), 400),
    Hostile("1 MB of nested objects", filled(b"", b'{"a":', b""), 400),
    Hostile("490 levels", raw_request(b'"parameters": {"a": ' + b"[" * 490 + b"]" * 490 + b"}"), 201),
    Hostile("260 levels in a state's data", raw_request(b'"state": {"type": "FAILED", "data": ' + b"[" * 260 + b"]" * 260 + b"}"), 201),
    # Overflowed orjson's buffer
    Hostile("thirteen lists of 250 levels", raw_request(b'"context": {"a": ["' + b"x" * 60 + b'"' + 13 * (b", " + b"[" * 250 + b"]" * 250) + b"]}"), 201),
    Hostile("thirteen lists of 250 levels in labels", raw_request(b'"labels": {"a": ["' + b"x" * 60 + b'"' + 13 * (b", " + b"[" * 250 + b"]" * 250) + b"]}"), 422),
    Hostile("600 levels", raw_request(b'"parameters": {"a": ' + b"[" * 600 + b"]" * 600 + b"}"), 400),
    # Unusable runs for Prefect, accepted in a database of our own
    Hostile("200 tags", request(tags=[f"{number}" for number in range(200)]), 201),
    Hostile("a result whose key is a number", request(state={"type": "SCHEDULED", "data": {"storage_key": 1}}), 201),
    Hostile("a result that names a library", request(state={"type": "SCHEDULED", "data": {"storage_key": "a", "serializer": {"type": "pickle", "picklelib": "os"}}}), 201),
    # Numbers
    Hostile("a number of 5,000 digits", raw_request(b'"parameters": {"a": ' + b"9" * 5000 + b"}"), 400),
    Hostile("a number of 4,000 digits", raw_request(b'"parameters": {"a": ' + b"9" * 4000 + b"}"), 201),
    Hostile("a number of a million digits", raw_request(b'"parameters": {"a": ' + b"9" * 1_000_000 + b"}"), 400),
    Hostile("a fraction of a million digits", raw_request(b'"context": {"a": 0.' + b"3" * 1_000_000 + b"}"), 201),
    Hostile("a number with an exponent of 400", raw_request(b'"parameters": {"a": 1e400, "b": -1e400, "c": 1e-400}'), 201),
    Hostile("NaN and infinities in parameters", raw_request(b'"parameters": {"a": [NaN, Infinity, -Infinity]}'), 201),
    Hostile("NaN in job variables and in a state's data", raw_request(b'"job_variables": {"a": NaN}, "state": {"type": "FAILED", "data": [-Infinity]}'), 201),
    Hostile("NaN in a label", raw_request(b'"labels": {"a": NaN}'), 422),
    Hostile("infinities in labels, by their exponent", raw_request(b'"labels": {"a": 1e400, "b": -1e400}'), 422),
    Hostile("NaN in a label among 10,000", raw_request(b'"labels": {' + b"".join(b'"%x": 1.5, ' % n for n in range(10_000)) + b'"z": NaN}'), 422),
    Hostile("a retry delay of NaN seconds", raw_request(b'"empirical_policy": {"retry_delay_seconds": NaN, "retry_delay": 1}'), 422),
    Hostile("a retry delay that is infinite, as text", raw_request(b'"empirical_policy": {"retry_delay_seconds": "-inf", "retry_delay": 1}'), 422),
    Hostile("a scheduled time that is infinite", raw_request(b'"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": Infinity}}'), 422),
    Hostile("NaN in the policy", raw_request(b'"empirical_policy": {"retries": NaN}'), 422),
    Hostile("infinite retries", raw_request(b'"empirical_policy": {"retries": 1e999}'), 422),
    Hostile("retries beyond 64 bits", raw_request(b'"empirical_policy": {"retries": 99999999999999999999999}'), 201),
    Hostile("a label beyond 64 bits", raw_request(b'"labels": {"a": -9223372036854775809}'), 201),
    # Objects
    Hostile("the same key again and again", filled(b'{"flow_id": 1, ', b'"name": 1, ', b'"name": "a", "flow_id": "%s"}' % FLOW_ID.encode()), 201),
    Hostile("an unknown field", request(no_such_field="red"), 422),
    Hostile("names that mean something elsewhere", request(parameters={"__proto__": 1, "$ref": "#", "__class__": {}}), 201),
    Hostile("SQL in every text", request(name="'; DROP TABLE flow_run; --", tags=["$1", "%s", ":a", "?"], idempotency_key='<id>"\\\''), 201),
    Hostile("text that steers a terminal", request(name="\x1b[2J\u202e\r\n\x07", tags=["\x7f\u2028"]), 201),
    Hostile("a flow id that is a number", raw_request(b'"flow_id": 5'), 422),
    Hostile("a flow id of 1 MB", filled(b'{"flow_id": "', b"a", b'"}'), 422),
    Hostile("a scheduled time before the year 1", request(state={"type": "SCHEDULED", "state_details": {"scheduled_time": "0001-01-01T00:00:00+23:59"}}), 422),
    Hostile("a scheduled time after the year 9999", request(state={"type": "SCHEDULED", "state_details": {"scheduled_time": 1e300}}), 422),
    Hostile("a scheduled time of 1 MB", filled(b'{"flow_id": "%s", "state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2030-01-01T' % FLOW_ID.encode(), b"0", b'"}}}'), 422),
    Hostile("an unknown state", request(state={"type": "DOOMED"}), 422),
    Hostile("a run that the database refuses", request(name=REFUSED_NAME), 409),
    # Size
    Hostile("a body one byte over the limit", GOOD + b" " * (LIMIT + 1 - len(GOOD)), 413),
    Hostile("a name of 1 MB", filled(b'{"flow_id": "%s", "name": "' % FLOW_ID.encode(), b"a", b'"}'), 201),
    Hostile("a tag of 1 MB", filled(b'{"flow_id": "%s", "tags": ["' % FLOW_ID.encode(), b"\xc3\xbc", b'"]}'), 201),
    Hostile("250,000 tags", filled(b'{"flow_id": "%s", "tags": [' % FLOW_ID.encode(), b'"",', b'"a"]}', 750_000), 201),
    Hostile("a state's message of 1 MB", filled(b'{"flow_id": "%s", "state": {"type": "FAILED", "message": "' % FLOW_ID.encode(), b"a", b'"}}'), 201),
    Hostile("parameters of 600 kB", request(parameters={"a": "x" * 600_000}), 422),
    Hostile("an idempotency key of 2,501 bytes", request(idempotency_key=noise(2501)), 422),
    Hostile("an idempotency key of 3,000 equal bytes", request(idempotency_key="x" * 3000), 422),
    Hostile("an idempotency key of 1 MB", filled(b'{"flow_id": "%s", "idempotency_key": "' % FLOW_ID.encode(), b"a", b'"}'), 422),
    Hostile("many errors: half a million tags that are none", filled(b'{"flow_id": "%s", "tags": [' % FLOW_ID.encode(), b"1,", b"1]}"), 422),
    Hostile("many errors: labels that are none", raw_request(b'"labels": {' + b",".join(b'"%x": []' % n for n in range(80_000)) + b"}"), 422),
    Hostile("many errors: unknown fields", raw_request(b",".join(b'"%x": 1' % n for n in range(80_000))), 422),
    Hostile("many errors: NULs", filled(b'{"flow_id": "%s", "context": {"a": [' % FLOW_ID.encode(), rb'"\u0000",', b"1]}}"), 422),
    Hostile("many errors, each with a long way to it", filled(b'{"flow_id": "%s", "context": {"%s": [' % (FLOW_ID.encode(), b"k" * 300_000), rb'"\u0000",', b"1]}}"), 422),
    Hostile("many errors, each 490 levels deep", filled(b'{"flow_id": "%s", "context": {"a": ' % FLOW_ID.encode() + b"[" * 490, rb'"\u0000",', b"1" + b"]" * 490 + b"}}"), 422),
    Hostile("an error in a label with a name of 1 MB", filled(b'{"flow_id": "%s", "labels": {"' % FLOW_ID.encode(), b"k", b'": []}}'), 422),
    Hostile("answer larger than a message", filled(b'{"flow_id": "%s", "labels": {"a": [' % FLOW_ID.encode(), b"1e15,", b"1]}}"), 422),
    Hostile("no JSON, and six times as long when escaped", b'{"a": "' + b"\x01" * (LIMIT - 7), 422),
    # Properties
    Hostile("another content type", GOOD, 415, {"content_type": "text/plain"}),
    Hostile("text/json", GOOD, 415, {"content_type": "text/json"}),
    Hostile("lines of JSON", GOOD, 415, {"content_type": "application/jsonl"}),
    Hostile("another character set, of which JSON knows none", GOOD, 201, {"content_type": "application/json; charset=utf-16"}),
    Hostile("such a character set, and text in it", raw_request(b'"name": "M\xfcller"'), 400, {"content_type": "application/json; charset=latin-1"}),
    Hostile("a media type of somebody's own in JSON", GOOD, 201, {"content_type": 'Application/vnd.orders+JSON; profile="a;b"'}),
    Hostile("a content type of 255 bytes", GOOD, 415, {"content_type": "a" * 255}),
    Hostile("a content encoding", GOOD, 415, {"content_encoding": "gzip"}),
    Hostile("a content encoding that is a character set", GOOD, 415, {"content_encoding": "utf-16"}),
    Hostile("plain JSON as Spring AMQP labels it", GOOD, 201, {"content_encoding": "UTF-8", "content_type": "application/json"}),
    Hostile("plain JSON as Kombu labels bytes", GOOD, 201, {"content_encoding": "binary", "content_type": "application/json"}),
    Hostile("delivery mode 1", GOOD, 201, {"delivery_mode": 1}),
    Hostile("priority 255", GOOD, 201, {"priority": 255}),
    Hostile("priority 255, refused", b"{}", 422, {"priority": 255}),
    Hostile("an expiration", GOOD, 201, {"expiration": "600000"}),
    Hostile("an expiration, refused", b"{}", 422, {"expiration": "600000"}),
    Hostile("every property at its longest", b"{}", 422, dict.fromkeys(("message_id", "message_type", "app_id"), "x" * 255)),
    Hostile("properties that steer a terminal", b"{}", 422, {"message_id": "\x1b[2J\r\n\x00", "message_type": "\u202e"}),
    Hostile("a user id", GOOD, 201, {"user_id": "guest"}),
    Hostile("a user id, refused", b"{}", 422, {"user_id": "guest"}),
    Hostile("a timestamp at the end of time", GOOD, 201, {"timestamp": datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)}),
    Hostile("no properties", NAMED, 201, raw=(0, b""), replied=False),
    Hostile("a correlation id that is no UTF-8", NAMED, 422, raw=(CORRELATION_ID, b"\x03a\xff\xfe"), replied=False),
    Hostile("a timestamp after the year 9999", NAMED, 201, raw=(TIMESTAMP, struct.pack(">Q", 2**62)), replied=False),
    # Reply queues
    Hostile("reply to the request queue", GOOD, 400, {"reply_to": QUEUE}, replied=False),
    Hostile("reply to the dead-letter queue", GOOD, 400, {"reply_to": f"{QUEUE}.dead"}, replied=False),
    Hostile("reply to a queue that does not exist", GOOD, 201, {"reply_to": "no-such-queue"}, replied=False),
    Hostile("reply to such a queue, refused", b"{}", 422, {"reply_to": "no-such-queue"}, replied=False),
    Hostile("reply to a name of 255 bytes", GOOD, 201, {"reply_to": "q" * 255}, replied=False),
    Hostile("reply to a name that steers a terminal", GOOD, 201, {"reply_to": "\x1b[2J\r\n\x00"}, replied=False),
    Hostile("direct reply-to that nobody made", GOOD, 201, {"reply_to": "amq.rabbitmq.reply-to.nobody"}, replied=False),
    Hostile("direct reply-to of nothing", GOOD, 201, {"reply_to": "amq.rabbitmq.reply-to."}, replied=False),
    Hostile("direct reply-to that is no process", GOOD, 201, {"reply_to": "amq.rabbitmq.reply-to.g1h3AAFh.AAAA"}, replied=False),
    Hostile("direct reply-to in an old form", GOOD, 201, {"reply_to": "amq.rabbitmq.reply-to.g2dkAA9yZXBseUAxMjgyMTEzODAAAAKwAAAAAAE=.aSiJZEuFGqmRJ4JUR3dDOQ=="}, replied=False),
    Hostile("direct reply-to as an address", GOOD, 201, {"reply_to": f"/queue/{ELSEWHERE}"}, replied=False),
    Hostile("reply to the address of no queue, refused", b"{}", 422, {"reply_to": "/queue//queue/no-such-queue"}, replied=False),
    Hostile("reply to an address that is no text", GOOD, 201, {"reply_to": "/queues/%FF%00%2F"}, replied=False),
    Hostile("reply to the address of nothing", GOOD, 201, {"reply_to": "/amq/queue/"}, replied=False),
    Hostile("reply to the address of the request queue", GOOD, 400, {"reply_to": f"/queues/{QUEUE}"}, replied=False),
    Hostile("direct reply-to of another cluster", GOOD, 201, {"reply_to": ELSEWHERE}, replied=False),
    Hostile("direct reply-to of another cluster, refused", b"{}", 422, {"reply_to": ELSEWHERE}, replied=False),
    # Headers
    Hostile("headers of every type", GOOD, 201, {"headers": ODD_HEADERS}),
    Hostile("headers of every type, refused", b"{}", 422, {"headers": ODD_HEADERS}),
    Hostile("an API version that is a table", GOOD, 400, {"headers": {"x-prefect-api-version": {"0": 8}}}),
    Hostile("an API version that is an array", GOOD, 400, {"headers": {"x-prefect-api-version": ["0.8.4"]}}),
    Hostile("an API version in bytes", GOOD, 201, {"headers": {"x-prefect-api-version": bytearray(b"0.8.4")}}),
    Hostile("an API version of 60,000 digits", GOOD, 400, {"headers": {"x-prefect-api-version": "0." + "8" * 60_000 + ".4"}}),
    Hostile("an automation id that is none", GOOD, 422, {"headers": {"prefect-automation-id": [1]}}),
    Hostile("an automation name that is no base64", GOOD, 201, {"headers": {"prefect-automation-id": FLOW_ID, "prefect-automation-name": "\u202e"}}),
    Hostile("a trace parent of 60,000 characters", GOOD, 201, {"headers": {"traceparent": "0" * 60_000, "tracestate": [bytearray(b"x")]}}),
    Hostile("traces and hops of every type", GOOD, 201, {"message_id": "the same", "headers": HOPS}),
    Hostile("traces and hops of every type, refused", b"{}", 422, {"message_id": "the same", "headers": HOPS}),
    Hostile("a forged delivery count", GOOD, 201, {"headers": {"x-delivery-count": 10**9}}),
    Hostile("a forged delivery count that is text", GOOD, 201, {"headers": {"x-delivery-count": "many", "x-death": "never"}}),
    Hostile("forged dead-letter headers, refused", b"{}", 422, {"headers": {"x-error-status": "0", "x-error": {}, "x-death": 1}}),
    Hostile("a copy to the request queue, refused", b"{}", 422, {"headers": {"CC": [QUEUE]}}),
    Hostile("5,000 headers", GOOD, 201, {"headers": {f"header-{n}": n for n in range(5_000)}}),
    Hostile("5,000 headers, refused", b"{}", 422, {"headers": {f"header-{n}": n for n in range(5_000)}}),
    Hostile("headers that fill a frame, refused", b"{}", 422, {"headers": {f"{n}": "x" * 1_000 for n in range(129)}}),
    Hostile("tables 90 deep", GOOD, 201, {"headers": nested(90)}),
    Hostile("tables 200 deep", GOOD, 422, {"headers": nested(200)}),
    Hostile("tables 20,000 deep", NAMED, 422, raw=(HEADERS, deep_table(20_000)), replied=False),
    Hostile("a header's name that is no UTF-8", NAMED, 422, raw=(HEADERS, b"\0\0\0\x07\x01\xffS\0\0\0\0"), replied=False),
)  # fmt: skip

# The broker refuses these and closes the producer's channel.
REFUSED_BY_BROKER: tuple[dict[str, Any], ...] = (
    {"delivery_mode": 0},
    {"delivery_mode": 3},
    {"delivery_mode": 255},
    {"expiration": "soon"},
    {"expiration": "-1"},
    {"user_id": "somebody else"},
    {"headers": {"CC": "no array"}},
)


@dataclass(frozen=True)
class Sent:
    """One message of a run: hostile, or good if ``hostile`` is None."""

    id: str
    hostile: Hostile | None
    group: str
    frames: bytes


@dataclass
class Row:
    """The outcome of one hostile request at each of its places."""

    hostile: Hostile
    answers: Counter[str] = field(default_factory=Counter)
    reason: str = ""
    places: set[int] = field(default_factory=set)
    neighbours: int = 0
    served: int = 0
    letters: list[int] = field(default_factory=list)


@dataclass
class Run:
    """The outcome of a run.

    Attributes:
        stored: how many runs are in the database.
        stray: dead letters that no hostile request explains.
        log: the worker's.
        code: the worker's exit code.
    """

    rows: list[Row]
    stored: int
    stray: list[str]
    log: str
    code: int


def frames(message_id: str, body: bytes, hostile: Hostile | None, queue: str, reply_to: str) -> bytes:
    """A message as frames, with a content header written here if no library would write it."""
    publish = pamqp.frame.marshal(spec.Basic.Publish(routing_key=queue), 1)
    body = body.replace(b"<id>", message_id.encode())
    if hostile is not None and hostile.raw is not None:
        flags, properties = hostile.raw
        payload = struct.pack(">HHQH", 60, 0, len(body), flags) + properties
        header = struct.pack(">BHI", 2, 1, len(payload)) + payload + b"\xce"
    else:
        given = {"reply_to": reply_to, "correlation_id": message_id, "delivery_mode": 2}
        given |= {} if hostile is None else hostile.properties
        for name in ("reply_to", "headers"):
            if QUEUE in str(given.get(name)):
                given[name] = given[name].replace(QUEUE, queue) if name == "reply_to" else {"CC": [queue]}
        header = pamqp.frame.marshal(ContentHeader(0, len(body), _unchecked(given)), 1)
    step = 131_072 - 8
    content = (pamqp.frame.marshal(ContentBody(body[at : at + step]), 1) for at in range(0, len(body), step))
    return publish + header + b"".join(content)


def _unchecked(given: dict[str, Any]) -> spec.Basic.Properties:
    """Set one by one, since the constructor would refuse some of them."""
    properties = spec.Basic.Properties()
    for name, value in given.items():
        setattr(properties, name, value)
    return properties


def messages(corpus: Sequence[Hostile], queue: str, reply_to: str) -> Iterator[Sent]:
    """A good one, then four groups for each hostile one, which has another place in each.

    Each group has four that reach the database, so that each is one batch.
    """
    yield Sent("first", None, "", frames("first", GOOD, None, queue, reply_to))
    for number, hostile in enumerate(corpus):
        for place in range(BATCH):
            group = f"{number}.{place}"
            good = BATCH - hostile.stored
            for index in range(good + 1):
                if index == place:
                    yield Sent(group, hostile, group, frames(group, hostile.body, hostile, queue, reply_to))
                if index < good:
                    good_id = f"{group} good {index}"
                    yield Sent(
                        good_id, None, group, frames(good_id, request(name=good_id), None, queue, reply_to)
                    )
    yield Sent("last", None, "", frames("last", b"{}", None, queue, reply_to))


async def publish(url: str, sent: Iterator[Sent]) -> list[Sent]:
    """Write all of them to one channel, so that they are in the queue in this order."""
    connection = await aiormq.connect(url)
    channel = await connection.channel(publisher_confirms=False)
    assert channel.number == 1
    # A commit waits for the queue. Without it, a queue that lags when the channel closes drops
    # messages.
    await channel.tx_select()
    published = []
    for number, each in enumerate(sent, start=1):
        written = asyncio.get_running_loop().create_future()
        await connection.write_queue.put(
            ChannelFrame(payload=each.frames, should_close=False, drain_future=written)
        )
        await written
        published.append(Sent(each.id, each.hostile, each.group, b""))
        if number % COMMIT_EVERY == 0:
            await channel.tx_commit()
    await channel.tx_commit()
    await connection.close()
    return published


async def prepare(database_url: str) -> None:
    """Make the schema, and a trigger that refuses one run."""
    store = await Store.open(database_url, migrate=True)
    await store.close()
    if database_url.startswith("sqlite"):
        with sqlite3.connect(_file(database_url)) as file:
            file.execute(
                "CREATE TRIGGER refuse BEFORE INSERT ON flow_run "
                f"WHEN NEW.name = '{REFUSED_NAME}' BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
        file.close()
        return
    await execute(
        database_url, f"ALTER TABLE flow_run ADD CONSTRAINT refuse CHECK (name <> '{REFUSED_NAME}')"
    )


def _file(database_url: str) -> str:
    return database_url.partition(":///")[2]


@contextmanager
def worker(
    amqp_url: str, database_url: str, queue: str, log: Path, *, fast_path: bool
) -> Iterator[WorkerProcess]:
    started = WorkerProcess(
        log,
        {
            "WORKER_AMQP_URL": amqp_url,
            "WORKER_DATABASE_URL": database_url,
            "WORKER_QUEUE": queue,
            "WORKER_HTTP_PORT": "0",
            "WORKER_LOG_LEVEL": "debug",
            "WORKER_BATCH_MAX": str(BATCH),
            "WORKER_PREFETCH": "65535",
            "WORKER_FAST_PATH": str(fast_path),
            # All of them are decoded while the database is locked.
            "WORKER_PREFETCH_SIZE": str(4 * 1024**3),
        },
    )
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()


async def serve(
    corpus: Sequence[Hostile],
    *,
    amqp_url: str,
    database_url: str,
    queue: str,
    folder: Path,
    fast_path: bool = True,
    seconds: float = 240.0,
) -> Run:
    """Publish the corpus among good requests to a worker, and record the outcome of each.

    The database is locked until all of them are decoded, so that every batch after the first is one
    of four, in the order of the queue. The worker's log proves it.
    """
    await prepare(database_url)
    rows = [Row(hostile) for hostile in corpus]
    by_hostile = {id(row.hostile): row for row in rows}
    async with Producer(amqp_url, queue) as producer:
        with worker(amqp_url, database_url, queue, folder / f"{queue}.log", fast_path=fast_path) as process:
            await asyncio.to_thread(process.wait_until_logged, "serving")
            async with locked(database_url):
                published = await publish(amqp_url, messages(corpus, queue, producer.reply_to))
                await producer.replies_to(["last"], seconds)
            answered = [each.id for each in published if each.hostile is None or each.hostile.replied]
            await producer.replies_to(answered, seconds)
            while await producer.depth():
                await asyncio.sleep(0.05)
            code = await asyncio.to_thread(process.terminate)
            log = process.output
        letters = await producer.dead_letters(await producer.depth(f"{queue}.dead"), seconds)

    dead: dict[str, list[Reply]] = {}
    for letter in letters:
        dead.setdefault(letter.correlation_id or _name(letter), []).append(letter)
    batches = _batches(log)
    place = 0
    for each in published:
        replies = producer.replies.get(each.id, [])
        if each.hostile is not None:
            row = by_hostile[id(each.hostile)]
            found = dead.pop(each.id, [])
            row.letters.append(len(found))
            row.answers[_answer(replies, found)] += 1
            if found:
                row.reason = str(found[0].headers.get("x-error"))
            if each.hostile.stored:
                row.places.add(batches[place])
        elif each.group:
            row = rows[int(each.group.partition(".")[0])]
            row.neighbours += 1
            row.served += [reply.status for reply in replies] == [201]
        if each.id != "last" and (each.hostile is None or each.hostile.stored):
            place += 1
    dead.pop("last", None)
    return Run(
        rows,
        len(await fetch_runs(database_url)),
        [f"{name}: {found[0].headers}" for name, found in dead.items()],
        log,
        code,
    )


def _name(letter: Reply) -> str:
    return str(letter.body.get("name")) if isinstance(letter.body, dict) else ""


def _answer(replies: list[Reply], dead: list[Reply]) -> str:
    """The status of the reply, in brackets if no reply can reach the requester."""
    if replies:
        return ", ".join(str(reply.status) for reply in replies)
    if dead:
        return f"({dead[0].headers.get('x-error-status')})"
    return "(201)"


def _batches(log: str) -> list[int]:
    """For each request that reached the database, in order: its place in its batch; -1 if the batch
    was not full.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    places = []
    for line in re.findall(r"batch +created=(\d+) existing=(\d+) .*?refused=(\d+)", plain):
        size = sum(int(number) for number in line)
        places += list(range(size)) if size == BATCH else [-1] * size
    return places


def table(runs: dict[str, Run]) -> str:
    """The results, one line for each hostile request; those of the second database only if they
    differ.
    """
    lines = [f"{'input':62} {'answer':10} {'dead letters':13} {'neighbours served':18} reason"]
    for index, row in enumerate(next(iter(runs.values())).rows):
        seen = [run.rows[index] for run in runs.values()]
        answers = " / ".join(dict.fromkeys(", ".join(each.answers) for each in seen))
        letters = " / ".join(dict.fromkeys(f"{sum(each.letters)} of {len(each.letters)}" for each in seen))
        served = f"{sum(each.served for each in seen)} of {sum(each.neighbours for each in seen)}"
        reason = row.reason if row.reason.isprintable() else ascii(row.reason)
        lines.append(f"{row.hostile.name:62} {answers:10} {letters:13} {served:18} {reason[:110]}")
    return "\n".join(lines)


async def main() -> None:
    """Run the corpus on servers of its own and print the results."""
    with RabbitMQ() as node, PostgreSQL() as cluster, tempfile.TemporaryDirectory() as folder:
        runs = {}
        for kind, url in (
            ("sqlite", f"sqlite+aiosqlite:///{folder}/runs.db"),
            ("postgresql", cluster.create_database()),
        ):
            runs[kind] = await serve(
                CORPUS, amqp_url=node.url, database_url=url, queue=f"{kind}.create", folder=Path(folder)
            )
        print(table(runs))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
