"""Properties as they are read and written, what of a message's headers goes into its dead letter,
and what it is known by.
"""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from worker.broker.properties import UndecodableProperties, read_properties
from worker.broker.publication import APP_ID, Publication, reply, writable_headers
from worker.contract.message import Message, fingerprint

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
short = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
properties = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("content_type", "correlation_id", "reply_to", "message_id", "message_type", "app_id"), short
        ),
        "headers": st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
            st.integers(0, 2**31) | short | st.booleans(),
            max_size=3,
        ),
        "delivery_mode": st.integers(1, 2),
        "priority": st.integers(0, 255),
        "timestamp": st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(
            lambda at: at.replace(microsecond=0, tzinfo=UTC)
        ),
    },
)


@given(properties)
def test_properties_are_read_as_pamqp_wrote_them(given: dict[str, Any]) -> None:
    written = spec.Basic.Properties(**given)
    read = read_properties(written.marshal())
    assert not isinstance(read, UndecodableProperties)
    assert {name: getattr(read, name) for name in given} == given
    assert all(
        getattr(read, name) in (None, "") for name in spec.Basic.Properties.__slots__ if name not in given
    )


@given(short | st.none(), st.sampled_from([200, 201, 404, 422]))
def test_a_reply_has_the_properties_of_the_contract(correlation_id: str | None, status: int) -> None:
    made = reply(
        Message(b"", {}, reply_to="q", correlation_id=correlation_id), status=status, body=b"{}", now=NOW
    )
    made.properties.message_id = "a.1"
    read = read_properties(made.properties.marshal())
    expected = {
        "content_type": "application/json",
        "headers": {"status": status},
        "delivery_mode": 2,
        "correlation_id": correlation_id,
        "message_id": "a.1",
        "timestamp": NOW,
        "message_type": "flow_run" if status < 400 else "error",
        "app_id": APP_ID,
    }
    assert {name: getattr(read, name) for name in expected} == expected


@pytest.mark.parametrize("body", [b"", b"x", b"x" * 92, b"x" * 93, b"x" * 1000])
def test_a_publication_is_written_as_pamqp_writes_it(body: bytes) -> None:
    made = spec.Basic.Properties(correlation_id="c", headers={"a": 1})
    frames = [spec.Basic.Publish(0, "", "a queue", True), ContentHeader(0, len(body), made)]
    frames += [ContentBody(body[start : start + 92]) for start in range(0, len(body), 92)]
    written = b"".join(pamqp.frame.marshal(each, 5) for each in frames)
    assert Publication("a queue", made, body, numbered=False).marshal(5, 100) == written


def test_properties_that_do_not_fit_into_a_frame_are_refused() -> None:
    with pytest.raises(ValueError, match="properties take"):
        Publication("q", spec.Basic.Properties(correlation_id="c" * 200), b"", numbered=False).marshal(1, 100)


def test_headers_that_cannot_be_written_are_dropped_each_by_itself() -> None:
    headers = {
        "x-prefect-api-version": "0.8.4",
        "latin": b"caf\xe9",
        "nested": {"list": [b"\xff", 1]},
        "huge": 1e300,
        "number": 2**70,
    }
    writable, dropped = writable_headers(headers)
    assert writable == {
        "x-prefect-api-version": "0.8.4",
        "latin": bytearray(b"caf\xe9"),
        "nested": {"list": [bytearray(b"\xff"), 1]},
    }
    assert dropped == ["'huge'", "'number'"]


def test_a_dead_letter_sent_again_is_the_same_message() -> None:
    sent = Message(
        b"{}", {"mine": b"\xff", "CC": ["other"]}, message_id="1", user_id="guest", expiration="60000"
    )
    died = {"mine": bytearray(b"\xff"), "x-death": [{"count": 1}], "x-delivery-count": 3}
    assert fingerprint(dataclasses.replace(sent, headers=died, user_id=None, expiration=None)) == fingerprint(
        sent
    )
    assert fingerprint(dataclasses.replace(sent, body=b"{} ")) != fingerprint(sent)
