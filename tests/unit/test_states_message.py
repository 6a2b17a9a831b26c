"""The message that tells a state of a run."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pamqp.frame
from pamqp import commands as spec

from worker.amqp.properties import split
from worker.broker.incoming import read_message
from worker.broker.messages import PERSISTENT, state_message
from worker.contract.decode import FlowRunRequest
from worker.contract.flow_run import FlowRun, FlowRunState
from worker.contract.record import FlowRunRecord, encode_record, encode_state
from worker.contract.request import CreateFlowRun
from worker.runs.creation import new_run

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def a_run(deployment_id: UUID | None = None) -> tuple[FlowRun, FlowRunState]:
    """A COMPLETED run, and the state in which it was RUNNING."""
    body = CreateFlowRun.model_validate(
        {"flow_id": uuid4(), "state": {"type": "COMPLETED"}, "deployment_id": deployment_id}
    )
    run = new_run(FlowRunRequest(body), NOW).run
    assert run.state is not None
    began = NOW - timedelta(seconds=10)
    return run, replace(run.state, id=uuid4(), type="RUNNING", name="Running", timestamp=began)


def test_a_state_has_the_properties_of_the_contract() -> None:
    run, state = a_run()
    message = state_message("q.states", run, state, b"{}")
    assert message.queue == f"RUNNING.{run.flow_id}.-.{run.id}"
    assert (message.exchange, message.mandatory, message.body) == ("q.states", False, b"{}")
    read = read_message(message.properties, b"")
    assert (read.type, read.message_id, read.timestamp) == ("flow_run_state", str(state.id), state.timestamp)
    assert (read.content_type, read.app_id, read.headers) == ("application/json", "flow-run-worker", {})
    assert split(read.raw_properties)["delivery_mode"] == PERSISTENT
    deployment_id = uuid4()
    run, state = a_run(deployment_id)
    assert f".{deployment_id}." in state_message("q.states", run, state, b"{}").queue


def test_it_is_published_to_its_exchange() -> None:
    message = state_message("q.states", *a_run(), b"{}")
    (frames,) = message.frames(1, 131_072)
    _, _, publish = pamqp.frame.unmarshal(frames)
    assert isinstance(publish, spec.Basic.Publish)
    assert (publish.exchange, publish.routing_key) == ("q.states", message.queue)
    assert not publish.mandatory


def test_its_record_is_that_of_the_run_with_this_state() -> None:
    run, state = a_run()
    current, told = (json.loads(each) for each in (encode_record(run, NOW), encode_state(run, state, NOW)))
    assert {name for name in told if told[name] != current[name]} == {
        "state",
        "state_id",
        "state_type",
        "state_name",
    }
    assert (told["state_type"], told["state"]["type"]) == ("RUNNING", "RUNNING")
    assert told["state_id"] == told["state"]["id"] == str(state.id)
    FlowRunRecord.model_validate(told)
