"""Which direct reply-to names can be the broker's, and which node they are of."""

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.broker.direct_reply import DirectReplies, _node

PREFIX = "amq.rabbitmq.reply-to."
# As RabbitMQ 3.10 wrote it on a node of this name.
SEEN = f"{PREFIX}g1h2AA9yZXBseUAxMjgyMTEzODAAAAKwAAAAAGsElGo=.aSiJZEuFGqmRJ4JUR3dDOQ=="


def name_of(term: bytes, *, padded: bool = True, key: str = "key") -> str:
    encoded = base64.b64encode(term).decode()
    return f"{PREFIX}{encoded if padded else encoded.rstrip('=')}.{key}"


def test_a_name_that_rabbitmq_wrote_tells_its_node() -> None:
    assert _node(SEEN) == b"reply@128211380"


@given(
    st.binary(max_size=255), st.sampled_from([b"v", b"d", b"w"]), st.sampled_from([b"X", b"g"]), st.booleans()
)
def test_every_form_of_a_process_id_tells_its_node(
    node: bytes, atom: bytes, pid: bytes, padded: bool
) -> None:
    length = struct.pack(">B" if atom == b"w" else ">H", len(node))
    term = b"\x83" + pid + atom + length + node + bytes(12 if pid == b"X" else 9)
    assert _node(name_of(term, padded=padded)) == node
    assert _node(name_of(term + b"\0", padded=padded)) is None
    assert _node(name_of(term[:-1], padded=padded)) is None


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=250))
def test_no_name_breaks_the_reader(rest: str) -> None:
    _node(PREFIX + rest)


@pytest.mark.parametrize(
    "name",
    ["", "nobody", ".", "g1h3AAFh.AAAA", "ü.key", "Z3h2.key", base64.b64encode(b"\x83gv").decode()],
)
async def test_what_rabbitmq_cannot_have_written_is_never_published_to(name: str) -> None:
    """It would close the connection over it."""
    replies = DirectReplies("amqp://127.0.0.1:1", "test")
    assert replies.may_publish(PREFIX + name) is False
    assert replies.may_publish("amq.rabbitmq.reply-to") is False


async def test_other_queues_are_none_of_its_business_and_a_new_node_has_to_be_tried() -> None:
    replies = DirectReplies("amqp://127.0.0.1:1", "test")
    assert replies.may_publish("replies") is True
    assert replies.may_publish(SEEN) is None


async def test_a_broker_that_is_away_teaches_nothing_of_a_node() -> None:
    """The reply is then published as it would have been: it arrives, or the session is lost."""
    replies = DirectReplies("amqp://127.0.0.1:1", "test")
    assert await replies.try_to_publish(SEEN) is True
