"""The byte stream from the broker, cut into frames: those for us, and those for aiormq."""

import asyncio
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from tests.support import properties as made
from worker.amqp.frames import CONTENT, END, HEAD, HEADER
from worker.amqp.reading import DeliveryReader
from worker.amqp.transport import ALIVE_SECONDS, HEARTBEAT, FrameReader, Transport

# The channel of deliveries, read in bulk with the fast path, and another channel of aiormq's own.
CONSUMING, PUBLISHING = 3, 1


def frame(method: Any, channel: int) -> bytes:
    return pamqp.frame.marshal(method, channel)


def message(
    method: Any, body: bytes, properties: bytes, channel: int = CONSUMING, piece: int = 1000
) -> bytes:
    """The frames of a message, its body in pieces."""
    header = struct.pack(">HHQ", 60, 0, len(body)) + properties
    content = struct.pack(">BHI", 2, channel, len(header)) + header + bytes((END,))
    pieces = (ContentBody(body[start : start + piece]) for start in range(0, len(body), piece))
    return frame(method, channel) + content + b"".join(frame(each, channel) for each in pieces)


def named(message_id: str) -> bytes:
    return spec.Basic.Properties(message_id=message_id).marshal()


# A message id that is not UTF-8: aiormq would end the connection over it.
UNREADABLE = b"\x00\x80\x02\xff\xfe"
LARGE = b"x" * 2500
DECLARED = frame(spec.Queue.DeclareOk("q", 1, 2), PUBLISHING)
CONSUMED = frame(spec.Basic.ConsumeOk("tag"), CONSUMING)
ACK, NACK = frame(spec.Basic.Ack(3, True), PUBLISHING), frame(spec.Basic.Nack(4, False), PUBLISHING)
BLOCKED = frame(spec.Connection.Blocked("low on memory"), 0)
UNBLOCKED = frame(spec.Connection.Unblocked(), 0)
# Each with the part that aiormq gets: without the fast path, and with it.
first = message(spec.Basic.Deliver("a tag", 7, True, "", "q"), LARGE, named("first"))
empty = message(spec.Basic.Deliver("a tag", 8, False, "exchange", "key"), b"", named("empty"))
odd = message(spec.Basic.Deliver("", 9, False, "", "q"), b"odd", UNREADABLE)
odd_for_aiormq = message(spec.Basic.Deliver("", 9, False, "", "q"), b"odd", b"\0\0")
got = message(spec.Basic.GetOk(5, False, "", "q", 1), b"got", UNREADABLE, PUBLISHING)
got_for_aiormq = message(spec.Basic.GetOk(5, False, "", "q", 1), b"got", b"\0\0", PUBLISHING)
returned = message(spec.Basic.Return(312, "NO_ROUTE", "", "gone"), b"reply", named("mine"), PUBLISHING)
odd_return = message(spec.Basic.Return(312, "NO_ROUTE", "", "gone too"), b"", UNREADABLE, PUBLISHING)
odd_return_for_aiormq = message(spec.Basic.Return(312, "NO_ROUTE", "", "gone too"), b"", b"\0\0", PUBLISHING)
PARTS: list[tuple[bytes, bytes, bytes]] = [
    (first, first, b""),
    (DECLARED, DECLARED, DECLARED),
    (empty, empty, b""),
    (ACK, ACK, ACK),
    (BLOCKED, BLOCKED, BLOCKED),
    (returned, returned, returned),
    (NACK, NACK, NACK),
    (got, got_for_aiormq, got_for_aiormq),
    (odd, odd_for_aiormq, b""),
    (odd_return, odd_return_for_aiormq, odd_return_for_aiormq),
    (HEARTBEAT, HEARTBEAT, HEARTBEAT),
    (CONSUMED, CONSUMED, CONSUMED),
    (UNBLOCKED, UNBLOCKED, UNBLOCKED),
]
STREAM = b"".join(part for part, _, _ in PARTS)
DELIVERED = [
    (7, True, named("first"), LARGE),
    (8, False, named("empty"), b""),
    (9, False, UNREADABLE, b"odd"),
]


@dataclass
class Seen:
    """Everything seen of a stream."""

    delivered: list[tuple[int, bool, bytes, bytes]] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    blocked: list[str | None] = field(default_factory=list)
    properties: dict[tuple[int, int], bytes] = field(default_factory=dict)
    left: bytes = b""


async def read(pieces: Iterable[bytes], *, fast_path: bool) -> Seen:
    """The result of a stream that arrives in these pieces."""
    seen, transport = Seen(), Transport()
    transport.on_return[PUBLISHING] = seen.returned.append
    transport.on_blocked = seen.blocked.append
    if fast_path:
        transport.channels[CONSUMING] = DeliveryReader(
            transport,
            CONSUMING,
            lambda tag, properties, body, redelivered, _: seen.delivered.append(
                (tag, redelivered, properties, body)
            ),
        )
    reader = FrameReader(transport)
    for piece in pieces:
        reader.feed_data(piece)
    reader.feed_eof()
    seen.properties = transport.properties
    seen.left = await reader.read()
    assert transport.unblocked.is_set() == (seen.blocked[-1:] in ([], [None]))
    return seen


def without_heartbeats(stream: bytes) -> bytes:
    """Heartbeats replace the frames that aiormq does not see; remove them."""
    return stream.replace(HEARTBEAT, b"")


def bare(stream: bytes) -> bytes:
    """The frames without the properties in their content headers, which we read ourselves."""
    frames, at = [], 0
    while at < len(stream):
        kind, channel, length = HEAD.unpack_from(stream, at)
        end = at + HEAD.size + length + 1
        content = stream[at + HEAD.size : at + HEAD.size + CONTENT.size] + bytes(2)
        bare_header = HEAD.pack(HEADER, channel, len(content)) + content + bytes((END,))
        frames.append(bare_header if kind == HEADER else stream[at:end])
        at = end
    return b"".join(frames)


def check(seen: Seen, *, fast_path: bool) -> None:
    others = b"".join(part[1 + fast_path] for part in PARTS)
    assert without_heartbeats(bare(seen.left)) == without_heartbeats(bare(others))
    assert seen.returned == ["gone", "gone too"]
    assert seen.blocked == ["low on memory", None]
    if fast_path:
        assert seen.delivered == DELIVERED
        assert seen.properties == {(PUBLISHING, 5): UNREADABLE}
    else:
        served = {(CONSUMING, tag): properties for tag, _, properties, _ in DELIVERED}
        assert seen.properties == {**served, (PUBLISHING, 5): UNREADABLE}


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast path", "aio-pika alone"])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 100, 10_000])
async def test_frames_are_told_apart_however_the_socket_cuts_them(size: int, fast_path: bool) -> None:
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    check(await read(pieces, fast_path=fast_path), fast_path=fast_path)


@settings(deadline=None)
@given(st.sets(st.integers(1, len(STREAM) - 1), max_size=12), st.booleans())
def test_frames_are_told_apart_wherever_the_socket_cuts_them(cuts: set[int], fast_path: bool) -> None:
    pieces = [STREAM[start:end] for start, end in pairwise([0, *sorted(cuts), len(STREAM)])]
    check(asyncio.run(read(pieces, fast_path=fast_path)), fast_path=fast_path)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(made.properties(strings=st.binary(max_size=40).map(made.counted)), st.binary(max_size=300))
    ),
    st.integers(1, 400),
)
def test_whatever_a_delivery_carries_aiormq_gets_a_frame_that_it_can_read(
    messages: list[tuple[bytes, bytes]], size: int
) -> None:
    """The properties are kept unchanged for us, with and without the fast path."""
    stream = b"".join(
        message(spec.Basic.Deliver("t", tag, False, "", "q"), body, properties, piece=100)
        for tag, (properties, body) in enumerate(messages, start=1)
    )
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    plain = asyncio.run(read(pieces, fast_path=False))
    assert plain.properties == {
        (CONSUMING, tag): properties for tag, (properties, _) in enumerate(messages, start=1)
    }
    left, bodies = plain.left, [b""] * len(messages)
    tag = 0
    while left:
        consumed, _, each = pamqp.frame.unmarshal(left)
        left = left[consumed:]
        if isinstance(each, spec.Basic.Deliver):
            tag = each.delivery_tag
        elif isinstance(each, ContentHeader):
            assert each.body_size == len(messages[tag - 1][1])
        elif isinstance(each, ContentBody):
            bodies[tag - 1] += each.value
    assert bodies == [body for _, body in messages]
    fast = asyncio.run(read(pieces, fast_path=True))
    assert fast.delivered == [
        (tag, False, properties, body) for tag, (properties, body) in enumerate(messages, start=1)
    ]
    assert without_heartbeats(fast.left) == b""


def nested(levels: int) -> bytes:
    """Properties with nested tables in the headers."""
    content = b""
    for _ in range(levels):
        content = b"\x01aF" + struct.pack(">I", len(content)) + content
    return b"\x20\x00" + struct.pack(">I", len(content)) + content


@pytest.mark.parametrize("levels", [1, 100, *range(440, 500), 18_000])
@pytest.mark.parametrize("method", ["deliver", "return", "get"])
async def test_headers_however_deep_end_no_connection(levels: int, method: str) -> None:
    """aiormq's reader runs at another stack depth than ours."""
    frames = {
        "deliver": spec.Basic.Deliver("t", 1, False, "", "q"),
        "return": spec.Basic.Return(312, "NO_ROUTE", "", "gone"),
        "get": spec.Basic.GetOk(1, False, "", "q", 1),
    }
    properties = nested(levels)
    seen = await read([message(frames[method], b"", properties, PUBLISHING)], fast_path=False)
    header = seen.left[len(frame(frames[method], PUBLISHING)) :]

    def unmarshal(deeper: int) -> Any:
        return unmarshal(deeper - 1) if deeper else pamqp.frame.unmarshal(header)

    assert isinstance(unmarshal(40)[2], ContentHeader)
    assert seen.properties == ({} if method == "return" else {(PUBLISHING, 1): properties})
    assert seen.returned == (["gone"] if method == "return" else [])


@pytest.mark.parametrize(
    "stranger",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x00\x09\x01", DECLARED[:-1] + b"\x00", b"\x04" * 9],
)
@pytest.mark.parametrize("cut", [1, 3, 7])
async def test_what_is_no_frame_reaches_aiormq_as_it_came(stranger: bytes, cut: int) -> None:
    seen = await read([DECLARED, stranger[:cut], stranger[cut:], b"more"], fast_path=True)
    assert seen.left == DECLARED + stranger + b"more"


@pytest.mark.parametrize("at", [1, 6, 7, 20, len(first) - 1])
async def test_a_stream_that_ends_within_a_frame_ends_so_for_aiormq(at: int) -> None:
    """aiormq then sees a cut connection."""
    seen = await read([DECLARED, DECLARED[: min(at, len(DECLARED) - 1)]], fast_path=False)
    assert seen.left == DECLARED + DECLARED[: min(at, len(DECLARED) - 1)]
    seen = await read([first[:at]], fast_path=True)
    assert seen.delivered == []


async def test_aiormq_hears_that_the_connection_lives_while_all_frames_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RabbitMQ sends no heartbeats then, and aiormq would give the connection up after three
    minutes.
    """
    now = 100.0
    transport = Transport()
    transport.channels[CONSUMING] = DeliveryReader(transport, CONSUMING, lambda *_: None)
    reader = FrameReader(transport)
    monkeypatch.setattr(reader, "_now", lambda: now)
    for _ in range(50):
        now += ALIVE_SECONDS / 10
        reader.feed_data(empty)
    reader.feed_eof()
    assert 4 <= (await reader.read()).count(HEARTBEAT) <= 6


def test_the_heartbeat_is_amqps() -> None:
    assert frame(Heartbeat(), 0) == HEARTBEAT
    assert struct.unpack(">BHIB", HEARTBEAT) == (8, 0, 0, END)


async def test_a_block_is_waited_out_by_who_waits_for_it() -> None:
    transport = Transport()
    reader = FrameReader(transport)
    reader.feed_data(BLOCKED)
    waiting = asyncio.create_task(transport.unblocked.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    reader.feed_data(UNBLOCKED)
    await waiting
