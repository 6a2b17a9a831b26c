"""The line in process, for fuzzing: from a delivery's frames to the frames of what is published,
without broker and database.
"""

import json
import struct
from datetime import UTC, datetime
from typing import Any

from worker.broker.delivery import delivery_of
from worker.broker.properties import read_properties
from worker.broker.publication import dead_letter_copy, reply
from worker.contract.decode import decode
from worker.contract.errors import MAX_ERROR_BYTES, Refusal, encode_error
from worker.contract.message import Message
from worker.contract.record import encode_record
from worker.creation import NewRun, new_run
from worker.store.insertion import parameter
from worker.store.rows import RowCodec

FRAME_MAX = 131_072
MAX_BODY_BYTES = 1_048_576
STATUSES = {201, 400, 413, 415, 422}
NOW = datetime(2030, 1, 1, tzinfo=UTC)

_sqlite = RowCodec("sqlite")


def message_of(flags: int, properties: bytes, body: bytes) -> Message:
    """A message as the channel makes it of a content header's bytes and a body."""
    read = read_properties(struct.pack(">H", flags) + properties)
    return delivery_of(1, redelivered=False, properties=read, body=body).message


def serve(message: Message) -> int:
    """Decode, create, write the rows and the reply; returns the status.

    Raises:
        AssertionError: the answer is not as it has to be. Any other exception is a finding as well.
    """
    try:
        request = decode(message, max_body_bytes=MAX_BODY_BYTES)
        new = new_run(request, NOW, traceparent=request.traceparent)
    except Refusal as refusal:
        status, answer = refusal.status, _refused(message, refusal)
    else:
        status, answer = 201, _created(message, new)
    assert status in STATUSES
    shown: Any = json.loads(answer, parse_constant=_not_json)
    assert isinstance(shown, dict)
    assert reply(message, status=status, body=answer, now=NOW).marshal(1, FRAME_MAX)
    return status


def _refused(message: Message, refusal: Refusal) -> bytes:
    answer, line = encode_error(refusal), refusal.line
    assert len(answer) <= MAX_ERROR_BYTES
    assert line.isprintable()
    copy = dead_letter_copy(
        message, queue="q", status=refusal.status, error=line, now=NOW, login="guest", frame_max=FRAME_MAX
    )
    assert copy.marshal(1, FRAME_MAX).endswith(b"\xce")
    assert copy.body == message.body
    return answer


def _created(message: Message, new: NewRun) -> bytes:
    answer = encode_record(new.run, NOW)
    # A float may grow from 4 characters (1e15) to 18; a record of defaults has less than 3,000.
    assert len(answer) <= 6 * len(message.body) + 100_000
    assert new.run.state is not None
    stored = (*_sqlite.run_values(new.run), *_sqlite.state_values(new.run.state), *parameter([new.run]))
    for value in stored:
        if isinstance(value, str):
            assert "\0" not in value
            value.encode()
    return answer


def _not_json(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
