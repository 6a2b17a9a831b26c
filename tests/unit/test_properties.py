"""A message's properties: each is read separately, and written unchanged."""

import struct
from datetime import UTC, datetime
from typing import Any

import pamqp.decode
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.encode import encode_table_value

from tests.support import properties as made
from worker.amqp.properties import FLAGS, in_order, join, join_table, short_string, split, split_table
from worker.broker.incoming import read_message
from worker.contract.message import Message

PROPERTIES = {
    **dict.fromkeys(made.SHORT_STRINGS, made.text.filter(bool)),
    "headers": st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        st.integers(0, 2**31) | made.text | st.booleans(),
        max_size=3,
    ),
    "delivery_mode": st.integers(1, 2),
    "priority": st.integers(0, 255),
    "timestamp": st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(
        lambda at: at.replace(microsecond=0, tzinfo=UTC)
    ),
}


@given(st.fixed_dictionaries({}, optional=PROPERTIES))
def test_properties_are_read_as_pamqp_wrote_them(given: dict[str, Any]) -> None:
    given.pop("cluster_id", None)  # AMQP 0-9-1 does not define it, and a message has no place for it
    kept = {"message_type" if name == "type" else name: value for name, value in given.items()}
    written = Basic.Properties(**kept).marshal()
    message = read_message(written, b"body", redelivered=True)
    assert {name: getattr(message, name) for name in given} == given
    others = FLAGS.keys() - given.keys() - {"cluster_id"}
    assert all(not getattr(message, name) for name in others)
    assert (message.body, message.redelivered, message.raw_properties) == (b"body", True, written)
    assert message.unreadable == {}


@given(made.properties(headers=made.tables(made.header_names)))
def test_what_is_taken_apart_is_put_together_again_byte_for_byte(raw: bytes) -> None:
    values = split(raw)
    assert join(values) == join(in_order(values)) == raw
    if "headers" in values:
        assert join_table(split_table(values["headers"])) == values["headers"]


@given(made.tables(made.header_names))
def test_a_tables_entries_are_told_apart_where_pamqp_tells_them_apart(table: bytes) -> None:
    _, read = pamqp.decode.field_table(table)
    entries = split_table(table)
    assert {name for name, _ in entries} == read.keys()
    for name, value in dict(entries).items():
        again = pamqp.decode.field_table(join_table([(name, value)]))[1]
        assert repr(again[name]) == repr(read[name])


@given(made.text | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.binary(max_size=40).map(bytearray))
def test_a_value_is_written_as_a_table_has_it(value: Any) -> None:
    assert pamqp.decode.field_table(join_table([("a", encode_table_value(value))]))[1] == {"a": value}


@given(st.binary(max_size=400))
def test_whatever_bytes_come_reading_raises_nothing(raw: bytes) -> None:
    message = read_message(raw, b"")
    assert message.raw_properties == raw
    try:
        split(raw)
    except ValueError:
        assert "properties" in message.unreadable


@given(st.integers(0, 0xFFFF), st.binary(max_size=300))
def test_properties_that_end_too_early_are_told_and_those_before_are_read(flags: int, rest: bytes) -> None:
    raw = struct.pack(">H", flags & 0xFFFE) + b"\x04text" + rest
    message = read_message(raw, b"")
    if flags & FLAGS["content_type"]:
        assert message.content_type == "text"


UNREADABLE = {
    "correlation_id": b"\x02\xff\xfe",
    "message_id": b"\x01\x80",
    "timestamp": struct.pack(">Q", 1_700_000_000_000_000),
    "headers": b"\0\0\0\x07\x01\xffS\0\0\0\0",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_one_that_cannot_be_read_costs_no_other(name: str) -> None:
    """Not UTF-8; microseconds; a header's name that is not UTF-8."""
    others = {each: short_string(f"its {each}") for each in made.SHORT_STRINGS if each != name}
    message = read_message(join(in_order({**others, name: UNREADABLE[name]})), b"")
    assert message.unreadable.keys() == {name}
    assert message.unreadable[name]
    assert not getattr(message, name)
    for each in others.keys() - {"cluster_id"}:
        assert getattr(message, each) == f"its {each}"


def test_a_second_word_of_flags_is_passed_over() -> None:
    raw = struct.pack(">HH", FLAGS["message_id"] | 1, 0) + b"\x01m"
    assert read_message(raw, b"").message_id == "m"


def test_no_properties_are_none() -> None:
    assert read_message(b"\0\0", b"x") == Message(b"x", {})


@pytest.mark.parametrize("text", ["x" * 256, "ü" * 128])
def test_a_short_string_holds_255_bytes(text: str) -> None:
    assert short_string(text[:-1])
    with pytest.raises(ValueError, match="256 bytes"):
        short_string(text)


@pytest.mark.parametrize(
    "table",
    [
        b"\0\0\0\x04\x05na",
        b"\0\0\0\x03\x01n",
        b"\0\0\0\x04\x01n?\0",
        b"\0\0\0\x06\x01nS\0\0\0",
        b"\0\0\0\x07\x01nS\0\0\0\x09",
    ],
    ids=["name cut", "no type", "unknown type", "length cut", "value behind the table"],
)
def test_a_table_that_cannot_be_taken_apart_is_told(table: bytes) -> None:
    with pytest.raises(ValueError, match="header"):
        split_table(table)
