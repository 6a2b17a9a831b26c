"""The publications for a message: its reply, its dead letter, and the dead letter's replay."""

import struct
from datetime import UTC, datetime
from typing import Any

import pamqp.frame
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.encode import encode_table_value
from pamqp.header import ContentHeader

from tests.support import properties as made
from worker.amqp.plain import WrittenProperties
from worker.amqp.properties import in_order, join, join_table, short_string, split, split_table
from worker.amqp.publication import Publication
from worker.broker.incoming import read_message
from worker.broker.messages import APP_ID, dead_letter_copy, events_message, is_mandatory, reply
from worker.contract.decode import decode
from worker.contract.errors import MAX_LINE, Refusal
from worker.contract.message import Message, fingerprint
from worker.operate.letter_copies import counted_anew, sent_again

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
FRAME_MAX = 131_072
MICROSECONDS = 1_700_000_000_000_000
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

# Some can't be read.
broken = made.short_strings | made.no_utf8.map(made.counted)


def wire(publication: Publication, frame_max: int, channel: int = 1) -> bytes:
    return b"".join(publication.frames(channel, frame_max))


def letter_of(raw: bytes, *, frame_max: int = FRAME_MAX, error: str = "It is wrong.") -> Message:
    """The dead letter of a message with these properties, as read back.

    aio-pika must be able to read its publication.
    """
    copy = dead_letter_copy(
        read_message(raw, b"body"),
        queue="q.dead",
        status=422,
        error=error,
        now=NOW,
        frame_max=frame_max,
        traceparent=TRACEPARENT,
    )
    assert (copy.queue, copy.body) == ("q.dead", b"body")
    frames = wire(copy, frame_max)
    publish, _, method = pamqp.frame.unmarshal(frames)
    _, _, header = pamqp.frame.unmarshal(frames[publish:])
    assert isinstance(method, spec.Basic.Publish)
    assert isinstance(header, ContentHeader)
    assert header.properties.delivery_mode == 2
    assert header.properties.headers is not None
    assert header.properties.headers["x-error-status"] == 422
    assert header.properties.headers["x-error-traceparent"] == TRACEPARENT
    return read_message(copy.properties, copy.body)


def died(letter: Message) -> Message:
    """The letter with the headers that a quorum queue appends."""
    values = split(letter.raw_properties)
    added = [("x-delivery-count", b"l" + struct.pack(">q", 3)), ("x-death", b"A\0\0\0\0")]
    values["headers"] = join_table([*split_table(values["headers"]), *added])
    return read_message(join(in_order(values)), letter.body)


@given(made.properties(without=("expiration", "user_id")))
@example(join({"delivery_mode": b"\1"}))
@example(join({"headers": join_table([("ratio", b"d" + struct.pack(">d", 0.1))])}))
@example(join({"headers": join_table([("n" * 255, b"V"), ("n" * 255, b"T" + struct.pack(">Q", 2**41))])}))
@example(join({"timestamp": struct.pack(">Q", 1_700_000_000_123)}))
@example(join({"content_type": b"\0", "reply_to": b"\0", "message_id": b"\0"}))
@example(join({"headers": join_table([("latin", b"S\0\0\0\1\xe9")])}))
@example(join({"headers": bytes(4)}))
def test_a_dead_letter_sent_again_is_the_same_message_byte_for_byte(raw: bytes) -> None:
    original = read_message(raw, b"body")
    again = sent_again(died(letter_of(raw)), "q")
    assert (again.queue, again.properties, again.body) == ("q", raw, b"body")
    assert fingerprint(read_message(again.properties, again.body)) == fingerprint(original)


@given(made.properties(strings=broken, times=st.integers(0, 2**64 - 1), without=("expiration", "user_id")))
@example(join({"timestamp": struct.pack(">Q", MICROSECONDS)}))
@example(join({"headers": b"\0\0\0\x07\x01\xffS\0\0\0\0"}))
@example(join({"headers": join_table([("at", b"T" + struct.pack(">Q", MICROSECONDS))])}))
def test_properties_that_cannot_be_read_are_kept_and_sent_again_as_they_came(raw: bytes) -> None:
    letter = letter_of(raw)
    assert letter.unreadable == {}
    assert sent_again(died(letter), "q").properties == raw


def test_a_property_that_is_out_of_range_costs_the_request_nothing() -> None:
    """Microseconds in ``timestamp``, which AMQP has in seconds."""
    values = {"timestamp": struct.pack(">Q", MICROSECONDS), "app_id": b"\1\xff", "user_id": b"\1\xff"}
    body = b'{"flow_id": "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"}'
    message = read_message(join(values), body)
    assert message.unreadable.keys() == {"timestamp", "app_id", "user_id"}
    assert decode(message, max_body_bytes=1000).body.flow_id


@pytest.mark.parametrize("name", ["content_type", "content_encoding", "message_id", "type", "headers"])
def test_one_that_the_contract_uses_refuses_by_its_name_and_is_answered(name: str) -> None:
    bad = b"\0\0\0\x07\x01\xffS\0\0\0\0" if name == "headers" else b"\1\xff"
    values = {"reply_to": short_string("replies"), "correlation_id": short_string("mine"), name: bad}
    message = read_message(join(in_order(values)), b"{}")
    with pytest.raises(Refusal) as refused:
        decode(message, max_body_bytes=1000)
    assert refused.value.status == 422
    assert f"{name}: " in refused.value.line
    assert (message.reply_to, message.correlation_id) == ("replies", "mine")
    answer = reply(message, status=422, body=b"{}", now=NOW, error=refused.value.line)
    assert answer.queue == "replies"
    assert read_message(answer.properties, b"").correlation_id == "mine"


def test_what_would_lose_or_misdirect_the_letter_moves_aside_and_does_not_come_back() -> None:
    values = {
        "headers": join_table(
            [
                ("mine", b"V"),
                ("CC", b"A" + bytes((0, 0, 0, 6)) + b"S\0\0\0\1q"),
                ("BCC", b"A\0\0\0\0"),
                ("x-error", b"t\1"),
            ]
        ),
        "delivery_mode": b"\1",
        "expiration": short_string("60000"),
        "user_id": short_string("somebody"),
    }
    letter = letter_of(join(values))
    assert (letter.expiration, letter.user_id, letter.delivery_mode) == (None, None, 2)
    assert letter.headers == {
        "mine": None,
        "x-original-cc": ["q"],
        "x-original-bcc": [],
        "x-original-delivery-mode": bytearray(b"\1"),
        "x-original-expiration": "60000",
        "x-original-user-id": "somebody",
        "x-error-status": 422,
        "x-error": "It is wrong.",
        "x-failed-at": NOW.isoformat(),
        "x-error-traceparent": TRACEPARENT,
    }
    again = sent_again(letter, "q")
    assert again.properties == join({"headers": join_table([("mine", b"V")]), "delivery_mode": b"\1"})
    original = read_message(join(values), b"body")
    assert fingerprint(read_message(again.properties, b"body")) == fingerprint(original)


def test_no_letter_names_a_user_to_the_broker() -> None:
    """The broker closes the channel over any name except the login's, which a worker with a token
    or a certificate does not know.
    """
    letter = letter_of(join({"user_id": short_string("worker")}))
    assert letter.user_id is None
    assert letter.headers["x-original-user-id"] == "worker"


def test_a_letter_that_the_broker_made_can_be_put_back_by_another_user() -> None:
    """The broker leaves ``user_id`` in it, and would then close the channel."""
    own = {"user_id": short_string("producer"), "message_id": short_string("mine")}
    letter = died(read_message(join(in_order({**own, "headers": bytes(4)})), b"body"))
    put_back = counted_anew(letter, "q.dead")
    read = read_message(put_back.properties, put_back.body)
    assert (read.user_id, read.message_id) == (None, "mine")
    assert read.headers == {"x-death": [], "x-original-user-id": "producer"}
    assert split(sent_again(read, "q").properties) == {"message_id": short_string("mine")}


def test_properties_that_end_too_early_are_kept_whole_and_never_sent_again() -> None:
    raw = b"\x80\x00\x09cut"
    letter = letter_of(raw)
    assert letter.headers["x-original-properties"] == bytearray(raw)
    with pytest.raises(ValueError, match="could not be kept"):
        sent_again(letter, "q")


def test_headers_that_leave_no_room_for_the_reason_are_dropped_and_that_is_told() -> None:
    raw = join({"headers": join_table([("a", encode_table_value("x" * 8_150))]), "message_id": b"\1m"})
    letter = letter_of(raw, frame_max=8_192)
    assert "8192" in letter.headers["x-headers-dropped"]
    assert "a" not in letter.headers
    assert letter.message_id == "m"
    with pytest.raises(ValueError, match="could not be kept"):
        sent_again(letter, "q")


def test_the_longest_properties_and_the_longest_reason_fit_into_the_smallest_frame() -> None:
    """RabbitMQ allows no ``frame_max`` below 4,096."""
    longest = dict.fromkeys(made.SHORT_STRINGS, short_string("x" * 255))
    raw = join(in_order({**longest, "headers": join_table([("a", b"V")])}))
    letter = letter_of(raw, frame_max=4_096, error="🚀" * MAX_LINE)
    assert letter.headers["x-error-status"] == 422


@given(made.properties(headers=made.tables(made.header_names)), made.text)
def test_whatever_headers_come_the_letter_has_the_reason_alone_and_can_be_looked_at(
    raw: bytes, error: str
) -> None:
    """Headers with our own names are among them, as in a letter that was moved by hand."""
    letter = letter_of(raw, error=error)
    assert letter.headers["x-error"] == error
    assert letter.headers["x-failed-at"] == NOW.isoformat()
    names = [name for name, _ in split_table(split(letter.raw_properties)["headers"])]
    for name in ("x-error", "x-error-status", "x-failed-at"):
        assert names.count(name) == 1


@given(made.own_names, made.values, st.sampled_from(["x-original-reply-to", "x-original-delivery-mode"]))
def test_a_producer_cannot_put_properties_into_what_is_sent_again(
    name: str, value: bytes, forged: str
) -> None:
    """The header from which we would restore a property is not trusted."""
    headers = join_table([(name, value), (forged, encode_table_value(bytearray(b"\6forged")))])
    raw = join({"headers": headers, "delivery_mode": b"\2", "reply_to": short_string("mine")})
    again = split(sent_again(letter_of(raw), "q").properties)
    assert again["reply_to"] == short_string("mine")
    assert again["delivery_mode"] == b"\2"


def test_fingerprints_tell_messages_apart_and_pass_over_what_others_add() -> None:
    raw = join({"headers": join_table([("mine", b"S\0\0\0\1\xff")]), "message_id": b"\x011"})
    message = read_message(raw, b"{}")
    assert fingerprint(read_message(raw, b"{}", redelivered=True)) == fingerprint(message)
    assert fingerprint(died(message)) == fingerprint(message)
    assert fingerprint(read_message(raw, b"{} ")) != fingerprint(message)
    other = join({"headers": join_table([("mine", b"S\0\0\0\1\xfe")]), "message_id": b"\x011"})
    assert fingerprint(read_message(other, b"{}")) != fingerprint(message)


@given(
    st.none() | made.short_text.filter(made.fits),
    st.sampled_from([200, 201, 404, 422]),
    st.none() | made.text,
    st.sampled_from([None, TRACEPARENT]),
)
def test_a_reply_has_the_properties_of_the_contract(
    correlation_id: str | None, status: int, error: str | None, traceparent: str | None
) -> None:
    request = Message(b"", {}, reply_to="q", correlation_id=correlation_id)
    answer = reply(request, status=status, body=b"{}", now=NOW, error=error, traceparent=traceparent)
    assert (answer.queue, answer.body, answer.size) == ("q", b"{}", 2)
    read = read_message(answer.properties, b"")
    expected: dict[str, Any] = {
        "content_type": "application/json",
        "headers": {
            "status": status,
            **({} if error is None else {"x-error": error}),
            **({} if traceparent is None else {"traceparent": traceparent}),
        },
        "delivery_mode": 2,
        "correlation_id": correlation_id,
        "timestamp": NOW,
        "type": "flow_run" if status < 400 else "error",
        "app_id": APP_ID,
    }
    assert {name: getattr(read, name) for name in expected} == expected
    assert read.message_id
    assert spec.Basic.Properties().unmarshal(*_flags_and_rest(answer.properties)) is None
    following = reply(request, status=status, body=b"{}", now=NOW)
    assert read_message(following.properties, b"").message_id != read.message_id


def test_numbers_in_headers_have_the_type_that_every_adapter_passes_on() -> None:
    """RabbitMQ's STOMP adapter drops integers of 8 and 16 bits."""
    request = Message(b"", {}, reply_to="q")
    wrong = reply(request, status=422, body=b"{}", now=NOW, error="It is wrong.")
    letter = dead_letter_copy(request, queue="d", status=404, error="e", now=NOW, frame_max=FRAME_MAX)
    headers = [
        header
        for each in (reply(request, status=201, body=b"{}", now=NOW), wrong, letter)
        for header in split_table(split(each.properties)["headers"])
    ] + split_table(split(events_message("e", [b"{}"], "worker").properties)["headers"])
    numbers = [(name, value) for name, value in headers if value[:1] != b"S"]
    assert numbers == [
        ("status", b"I" + struct.pack(">i", 201)),
        ("status", b"I" + struct.pack(">i", 422)),
        ("x-original-delivery-mode", b"x\0\0\0\0"),
        ("x-error-status", b"I" + struct.pack(">i", 404)),
        ("events", b"I" + struct.pack(">i", 1)),
    ]


def _flags_and_rest(properties: bytes) -> tuple[int, bytes]:
    return struct.unpack_from(">H", properties)[0], properties[2:]


@pytest.mark.parametrize("body", [b"", b"x", b"x" * 92, b"x" * 93, b"x" * 1000])
@pytest.mark.parametrize("queue", ["a queue", "ü" * 127, "amq.rabbitmq.reply-to.g1h2.key"])
def test_a_publication_is_written_as_pamqp_writes_it(queue: str, body: bytes) -> None:
    properties = spec.Basic.Properties(correlation_id="c", headers={"a": 1})
    mandatory = not queue.startswith("amq.rabbitmq.reply-to")
    frames: list[Any] = [
        spec.Basic.Publish(0, "", queue, mandatory),
        ContentHeader(0, len(body), properties),
    ]
    frames += [ContentBody(body[start : start + 92]) for start in range(0, len(body), 92)]
    written = b"".join(pamqp.frame.marshal(each, 5) for each in frames)
    assert is_mandatory(queue) == mandatory
    assert wire(Publication(queue, properties.marshal(), body, mandatory), 100, 5) == written


@given(made.properties())
def test_written_properties_go_out_to_the_letter(raw: bytes) -> None:
    header = ContentHeader(0, 1, WrittenProperties(raw))
    assert pamqp.frame.marshal(header, 1) == b"".join(
        (struct.pack(">BHI", 2, 1, 12 + len(raw)), struct.pack(">HHQ", 60, 0, 1), raw, b"\xce")
    )


def test_properties_that_do_not_fit_into_a_frame_are_refused() -> None:
    publication = Publication("q", join({"correlation_id": short_string("c" * 200)}), b"")
    with pytest.raises(ValueError, match="properties take"):
        publication.frames(1, 100)
    with pytest.raises(ValueError, match="properties take"):
        publication.check(100)
    publication.check(1_000)


def test_a_queue_whose_name_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        Publication("q" * 256, b"\0\0", b"").frames(1, FRAME_MAX)
