"""The byte stream from the broker, cut into frames: what a channel takes, and what aiormq gets."""

import asyncio
import struct
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

from worker.broker.frames import ContentReader, acknowledge
from worker.broker.transport import ALIVE_SECONDS, HEARTBEAT, FrameReader

BULK, OTHER = 3, 1


class Seen:
    """Writes down what came in."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def delivered(self, tag: int, *, redelivered: bool, properties: Any, body: bytes) -> None:
        self.events.append(("delivered", tag, redelivered, properties.correlation_id, body))

    def returned(self, properties: Any) -> None:
        self.events.append(("returned", properties.message_id))

    def answered(self, tag: int, *, multiple: bool, refused: bool) -> None:
        self.events.append(("answered", tag, multiple, refused))


def message(method: Any, body: bytes, frame: int = 1000, **properties: Any) -> bytes:
    """The frames of a message, its body in pieces."""
    frames = [method, ContentHeader(0, len(body), spec.Basic.Properties(**properties))]
    frames += [ContentBody(body[start : start + frame]) for start in range(0, len(body), frame)]
    return b"".join(pamqp.frame.marshal(each, BULK) for each in frames)


DECLARED = pamqp.frame.marshal(spec.Queue.DeclareOk("q", 1, 2), OTHER)
CONSUMED = pamqp.frame.marshal(spec.Basic.ConsumeOk("tag"), BULK)
STREAM = b"".join(
    (
        message(spec.Basic.Deliver("a tag", 7, True, "", "q"), b"x" * 2500, correlation_id="first"),
        DECLARED,
        message(spec.Basic.Deliver("a tag", 8, False, "exchange", "key"), b"", correlation_id="empty"),
        pamqp.frame.marshal(spec.Basic.Ack(3, True), BULK),
        message(spec.Basic.Return(312, "NO_ROUTE", "", "gone"), b"reply", message_id="mine.4"),
        pamqp.frame.marshal(spec.Basic.Nack(4, False), BULK),
        CONSUMED,
        pamqp.frame.marshal(Heartbeat(), 0),
        message(spec.Basic.Deliver("", 9, False, "", "q"), b"last", correlation_id="last"),
    )
)
EVENTS = [
    ("delivered", 7, True, "first", b"x" * 2500),
    ("delivered", 8, False, "empty", b""),
    ("answered", 3, True, False),
    ("returned", "mine.4"),
    ("answered", 4, False, True),
    ("delivered", 9, False, "last", b"last"),
]
OTHERS = DECLARED + CONSUMED + HEARTBEAT


async def read(pieces: list[bytes]) -> tuple[list[tuple[Any, ...]], bytes]:
    """What the bulk channel was told, and what is left for aiormq (heartbeats that say that frames
    came taken out).
    """
    seen, reader = Seen(), FrameReader(asyncio.get_running_loop())
    reader.takers[BULK] = ContentReader(seen).take
    for piece in pieces:
        reader.feed_data(piece)
    reader.feed_eof()
    return seen.events, await reader.read()


@pytest.mark.parametrize("size", [1, 2, 7, 8, 100, 10_000])
async def test_frames_are_told_apart_however_the_socket_cuts_them(size: int) -> None:
    events, others = await read([STREAM[start : start + size] for start in range(0, len(STREAM), size)])
    assert events == EVENTS
    # With one more heartbeat, for the frames that aiormq did not see.
    assert others.replace(HEARTBEAT, b"") == OTHERS.replace(HEARTBEAT, b"")
    assert others.count(HEARTBEAT) == 2


@settings(deadline=None)
@given(st.sets(st.integers(1, len(STREAM) - 1), max_size=12))
def test_frames_are_told_apart_wherever_the_socket_cuts_them(cuts: set[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(places)]
    assert asyncio.run(read(pieces))[0] == EVENTS


async def test_a_channel_that_nobody_reads_in_bulk_is_left_to_aiormq() -> None:
    reader = FrameReader(asyncio.get_running_loop())
    reader.feed_data(STREAM)
    reader.feed_eof()
    assert await reader.read() == STREAM


@pytest.mark.parametrize(
    "stranger", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x00\x09\x01", DECLARED[:-1] + b"\x00"]
)
async def test_what_is_no_frame_reaches_aiormq_as_it_came(stranger: bytes) -> None:
    _, others = await read([DECLARED, stranger[:3], stranger[3:], b"more"])
    assert others == DECLARED + stranger + b"more"


async def test_aiormq_hears_that_the_connection_lives_while_all_frames_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RabbitMQ sends no heartbeats then, and aiormq would give the connection up after three
    minutes.
    """
    now = 100.0
    reader = FrameReader(asyncio.get_running_loop())
    monkeypatch.setattr(reader, "_now", lambda: now)
    reader.takers[BULK] = ContentReader(Seen()).take
    for _ in range(50):
        now += ALIVE_SECONDS / 10
        reader.feed_data(pamqp.frame.marshal(spec.Basic.Ack(1, False), BULK))
    reader.feed_eof()
    assert 4 <= (await reader.read()).count(HEARTBEAT) <= 6


@given(st.integers(1, 2**63 - 1), st.booleans(), st.integers(1, 65_535))
def test_an_ack_is_written_as_pamqp_writes_it(tag: int, multiple: bool, channel: int) -> None:
    assert acknowledge(channel, tag, multiple=multiple) == pamqp.frame.marshal(
        spec.Basic.Ack(tag, multiple), channel
    )


def test_the_heartbeat_is_amqps() -> None:
    assert pamqp.frame.marshal(Heartbeat(), 0) == HEARTBEAT
    assert struct.unpack(">BHIB", HEARTBEAT) == (8, 0, 0, 0xCE)
