"""Direct reply-to names: which can be the broker's, and which share one fate."""

import base64
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.broker.direct_reply import DirectReplies, _requester

PREFIX = "amq.rabbitmq.reply-to."
# As RabbitMQ 3.10 wrote it on a node of this name.
SEEN = f"{PREFIX}g1h2AA9yZXBseUAxMjgyMTEzODAAAAKwAAAAAGsElGo=.aSiJZEuFGqmRJ4JUR3dDOQ=="
NODE = b"reply@128211380"
KEY = "aSiJZEuFGqmRJ4JUR3dDOQ=="


def name_of(term: bytes, key: str = KEY) -> str:
    return f"{PREFIX}{base64.b64encode(term).decode()}.{key}"


def term_of(node: bytes = NODE, number: int = 1, serial: int = 0, creation: int = 7) -> bytes:
    return b"\x83Xv" + struct.pack(">H", len(node)) + node + struct.pack(">III", number, serial, creation)


def test_a_name_that_rabbitmq_wrote_tells_its_node() -> None:
    requester = _requester(SEEN)
    assert requester is not None
    assert requester.node == NODE


@given(st.integers(0, 2**15 - 1), st.integers(0, 2**13 - 1), st.integers(0, 2**32 - 1))
def test_all_processes_of_a_node_are_alike_where_every_erlang_takes_them(
    number: int, serial: int, creation: int
) -> None:
    requester, seen = _requester(name_of(term_of(NODE, number, serial, creation))), _requester(SEEN)
    assert requester is not None
    assert seen is not None
    assert requester.key == seen.key


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@example(2**15, 0, 7)
@example(0, 2**13, 7)
def test_a_name_is_tried_by_one_with_as_many_bits_that_reaches_nobody(
    number: int, serial: int, creation: int
) -> None:
    """Erlang closes a connection over a process number of its own node that is too large for it."""
    requester = _requester(name_of(term_of(NODE, number, serial, creation)))
    assert requester is not None
    tried = _requester(requester.nobody())
    assert tried is not None
    assert tried.key == requester.key
    if number >= 2**15 or serial >= 2**13:
        assert requester.key[1] == creation
        assert 2**requester.number_bits > number
        assert 2**requester.serial_bits > serial


@pytest.mark.parametrize(
    "term",
    [
        term_of()[:-1],
        term_of() + b"\0",
        b"\x83gd" + struct.pack(">H", len(NODE)) + NODE + bytes(9),
        b"\x83gv" + struct.pack(">H", len(NODE)) + NODE + bytes(9),
        b"\x83Xd" + struct.pack(">H", len(NODE)) + NODE + bytes(12),
        b"\x83Xw" + struct.pack(">B", len(NODE)) + NODE + bytes(12),
        term_of(b"rabbit@host"),
        term_of(b"reply@0128211380"),
        term_of(b"reply@+5"),
        term_of(b"reply@-5"),
        term_of(b"reply@134217728"),
        term_of(b"reply@"),
        term_of(b""),
        b"\x83Xv\xff\xff" + NODE + bytes(12),
        b"",
    ],
)
async def test_no_form_is_tried_that_rabbitmq_itself_never_writes(term: bytes) -> None:
    assert DirectReplies("amqp://127.0.0.1:1", "test").may_publish(name_of(term)) is False


@pytest.mark.parametrize("key", ["", "key", "AAAA", KEY + "=", KEY + ".a", KEY + "\n", f"{KEY}.{KEY}"])
async def test_nor_any_other_key(key: str) -> None:
    assert DirectReplies("amqp://127.0.0.1:1", "test").may_publish(name_of(term_of(), key)) is False


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=250))
def test_no_name_breaks_the_reader(rest: str) -> None:
    _requester(PREFIX + rest)


@pytest.mark.parametrize("name", ["", "nobody", ".", "g1h3AAFh.AAAA", "ü.key", "Z3h2.key", f"g1h2AAA.{KEY}"])
async def test_what_rabbitmq_cannot_have_written_is_never_published_to(name: str) -> None:
    """The broker would close the connection over it."""
    replies = DirectReplies("amqp://127.0.0.1:1", "test")
    assert replies.may_publish(PREFIX + name) is False
    assert replies.may_publish("amq.rabbitmq.reply-to") is False


async def test_other_queues_are_none_of_its_business_and_a_new_node_has_to_be_tried() -> None:
    replies = DirectReplies("amqp://127.0.0.1:1", "test")
    assert replies.may_publish("replies") is True
    assert replies.may_publish(SEEN) is None


async def test_a_broker_that_is_away_teaches_nothing_of_a_node() -> None:
    """The reply is published anyway: it arrives, or the session is lost."""
    replies = DirectReplies("amqp://127.0.0.1:1", "test")
    assert await replies.try_to_publish(SEEN) is True
