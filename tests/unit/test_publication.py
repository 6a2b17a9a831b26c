"""What of a message's headers goes into its dead letter, and what the message is known again by."""

import dataclasses

from worker.broker.publication import writable_headers
from worker.contract.message import Message, fingerprint


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
    sent = Message(b"{}", {"mine": b"\xff", "CC": ["other"]}, message_id="1", user_id="guest", expiration="60000")
    died = {"mine": bytearray(b"\xff"), "x-death": [{"count": 1}], "x-delivery-count": 3}
    assert fingerprint(dataclasses.replace(sent, headers=died, user_id=None, expiration=None)) == fingerprint(sent)
    assert fingerprint(dataclasses.replace(sent, body=b"{} ")) != fingerprint(sent)
