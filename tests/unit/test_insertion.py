"""What PostgreSQL's create statement leaves out follows from what it sends, whatever the request."""

from datetime import UTC, datetime

import pytest

from tests.faults.hostile import CORPUS
from tests.integration.test_requests import EVERY_FIELD
from worker.contract.decode import decode
from worker.contract.encoding import dumps
from worker.contract.message import Message
from worker.creation import new_run
from worker.store.insertion import RUN_CONSTANTS, RUN_FOLLOWS, STATE_FOLLOWS

STATES = (
    "SCHEDULED",
    "PENDING",
    "RUNNING",
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "CRASHED",
    "PAUSED",
    "CANCELLING",
)
EVERYTHING = [dumps({**EVERY_FIELD, "state": {**EVERY_FIELD["state"], "type": state}}) for state in STATES]
SERVED = [hostile.body for hostile in CORPUS if hostile.status == 201 and not hostile.properties]


@pytest.mark.parametrize("body", [*EVERYTHING, *SERVED], ids=range(len(EVERYTHING) + len(SERVED)))
def test_what_is_not_sent_follows_from_what_is(body: bytes) -> None:
    run = new_run(decode(Message(body, {}), max_body_bytes=2_000_000), datetime.now(UTC)).run
    assert run.state is not None
    for column, source in RUN_FOLLOWS.items():
        assert getattr(run, column) == getattr(run, source), column
    for column, (value, _) in RUN_CONSTANTS.items():
        assert getattr(run, column) == value, column
    for column, source in STATE_FOLLOWS.items():
        assert getattr(run.state, column) == getattr(run, source), column
