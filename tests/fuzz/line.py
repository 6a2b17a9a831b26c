"""The line in process, for fuzzing: from a delivery's frames to the published frames, without
broker and database.
"""

import json
import struct
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tests.support.checks import ChecksHere
from worker.amqp.properties import _SIZES, split, split_table
from worker.broker.incoming import read_message
from worker.broker.messages import dead_letter_copy, reply
from worker.contract.decode import decode
from worker.contract.errors import FlowRunNotFound, Refusal, encode_error
from worker.contract.message import MAX_MESSAGE_SIZE, Message, fingerprint
from worker.contract.record import encode_record
from worker.operate.dead_letters import sent_again
from worker.runs.creation import NewRun, ReadRun, UnresolvedRun, requested_run
from worker.runs.deployments.checking import renderer
from worker.runs.deployments.creation import described_parameters, hydrated_limit, run_of_deployment
from worker.runs.deployments.deployment import Deployment, WorkQueue
from worker.runs.deployments.hydration import variable_names
from worker.runs.unusable import unusable
from worker.store.statements import Statements

FRAME_MAX = 131_072
MAX_BODY_BYTES = 1_048_576
STATUSES = {201, 400, 404, 409, 413, 415, 422}
NOW = datetime(2030, 1, 1, tzinfo=UTC)
# Placeholder for any deployment that a request names.
DEPLOYMENT = Deployment(
    id=UUID(int=1),
    flow_id=UUID(int=2),
    flow_name="f",
    name="d",
    version="1",
    tags=["a"],
    labels={"a": 1},
    parameters={"a": "b"},
    size=10,
    deep=False,
    described=True,
    parameter_schema='{"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}',
    enforce_parameter_schema=True,
    job_variables='{"cpu": 1}',
    infrastructure_document_id=None,
    work_queue_id=UUID(int=3),
    work_queue_name="default",
    queue=WorkQueue(UUID(int=3), "default", UUID(int=4), "pool"),
    job_template='{"variables": {"type": "object", "properties": {"cpu": {"type": "integer"}}}}',
)
CHECKS = ChecksHere()
VARIABLES = {"v": [1, None, "text"]}

_DIALECTS: tuple[sa.Dialect, ...] = (sqlite.dialect(), postgresql.dialect())
_statements = [Statements(dialect, prefect=False) for dialect in _DIALECTS]


def message_of(flags: int, properties: bytes, body: bytes) -> Message:
    """A message as the session makes it from a content header's bytes and a body."""
    return read_message(struct.pack(">H", flags) + properties, body)


def serve(message: Message) -> int:
    """Decode, create, write the rows and the reply; returns the status.

    Raises:
        AssertionError: a wrong answer. Any other exception is a finding as well.
    """
    try:
        request = decode(message, max_body_bytes=MAX_BODY_BYTES)
        new = requested_run(request, NOW, traceparent=request.traceparent)
        if isinstance(new, ReadRun):
            raise FlowRunNotFound(new.run_id)
        if isinstance(new, UnresolvedRun):
            merged, limit = described_parameters(new, DEPLOYMENT), hydrated_limit(new, DEPLOYMENT)
            variable_names(merged, {}, renderer(CHECKS, new, DEPLOYMENT), limit)
            new = run_of_deployment(new, DEPLOYMENT, variables=VARIABLES, blocks={}, checks=CHECKS)
        unusable(new, [DEPLOYMENT.tags])
    except Refusal as refusal:
        status, answer = refusal.status, _refused(message, refusal)
    else:
        status, answer = 201, _created(message, new)
    assert status in STATUSES
    shown: Any = json.loads(answer, parse_constant=_not_json)
    assert isinstance(shown, dict)
    assert reply(message, status=status, body=answer, now=NOW).frames(1, FRAME_MAX)
    return status


def _refused(message: Message, refusal: Refusal) -> bytes:
    answer, line = encode_error(refusal, MAX_MESSAGE_SIZE), refusal.line
    assert len(answer) <= MAX_MESSAGE_SIZE
    assert line.isprintable()
    copy = dead_letter_copy(
        message, queue="q", status=refusal.status, error=line, now=NOW, frame_max=FRAME_MAX
    )
    assert copy.frames(1, FRAME_MAX)[-1].endswith(b"\xce")
    assert copy.body == message.body
    if _adds_up(message):
        letter = read_message(copy.properties, copy.body)
        assert letter.unreadable == {}
        assert letter.headers["x-error-status"] == refusal.status
        _replay(message, letter)
    return answer


def _adds_up(message: Message) -> bool:
    """Whether the nested lengths in the headers fit. RabbitMQ refuses others from the producer, and
    pamqp reads beyond their ends.
    """
    try:
        pending = [value for _, value in split_table(split(message.raw_properties).get("headers", bytes(4)))]
        while pending:
            value = pending.pop()
            if value[:1] == b"F":
                pending += [each for _, each in split_table(value[1:])]
            elif value[:1] == b"A":  # a table without names
                rest = value[5:]
                while rest:
                    ((_, each),) = split_table(bytes(4) + b"\0" + rest[: _size(rest)])
                    pending.append(each)
                    rest = rest[len(each) :]
    except ValueError:
        return False
    return True


def _size(value: bytes) -> int:
    """Size in bytes of a value in a sequence, with its type."""
    size = _SIZES.get(value[:1], 0)
    return 1 + (4 + int.from_bytes(value[1:5]) if size is None else size)


def _replay(message: Message, letter: Message) -> None:
    """A letter that can be sent again makes the same message."""
    try:
        again = sent_again(letter, "q")
    except ValueError:
        assert letter.headers.keys() & {"x-headers-dropped", "x-original-properties"}
        return
    assert fingerprint(read_message(again.properties, again.body)) == fingerprint(message)


def _created(message: Message, new: NewRun) -> bytes:
    answer = encode_record(new.run, NOW)
    # A float may grow from 4 characters (1e15) to 18; a record of defaults has less than 3,000.
    assert len(answer) <= 6 * len(message.body) + 100_000
    assert new.run.state is not None
    for statements in _statements:
        # One text of all rows (SQLite), or an array with a text for each.
        rows = statements.new_rows([new.run])[0]
        for row in [rows] if isinstance(rows, str) else rows:
            # No database stores a NUL character; JSON would allow its escape.
            assert "\\u0000" not in row.replace("\\\\", "")
            assert "\0" not in row
            row.encode()
            assert isinstance(json.loads(row, parse_constant=_not_json), list)
    return answer


def _not_json(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
