"""The controls of the fake. ``tests/conformance/test_fake.py`` compares its answers with a real
worker's.
"""

import asyncio
import inspect
import threading
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel

from worker.client import (
    AccessRefused,
    BrokerGone,
    ClientError,
    Conflict,
    FlowRunClient,
    FlowRunRefused,
    InvalidFlowRun,
    InvalidURL,
    MessageRefused,
    NoReply,
    NotConfirmed,
    NotFound,
    NotRoutable,
    NotTaken,
    StatesNotTold,
    UnreadableReply,
    WaitTimedOut,
)
from worker.client.sync import FlowRunClient as BlockingClient
from worker.client.testing import FakeFlowRunClient
from worker.client.testing.sync import FakeFlowRunClient as BlockingFake
from worker.contract.request import MAX_BODY_BYTES
from worker.settings import Settings

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
URL = "amqp://guest:guest@localhost:1/"


@pytest.mark.parametrize(
    ("fake", "real"), [(FakeFlowRunClient, FlowRunClient), (BlockingFake, BlockingClient)]
)
def test_it_has_the_real_clients_methods(fake: type, real: type) -> None:
    methods = [name for name in vars(real) if not name.startswith("_")]
    assert "create_flow_run" in methods
    for name in methods:
        assert inspect.signature(getattr(fake, name)) == inspect.signature(getattr(real, name)), name
    assert inspect.signature(fake).parameters.keys() == inspect.signature(real).parameters.keys()
    controls = [name for name in dir(fake) if name not in dir(real) and not name.startswith("_")]
    assert sorted(controls) == [
        *("deployment", "fail_next", "finish", "flow", "intercept", "refuse_next", "requests", "runs"),
        *("set_state", "strict", "variable", "work_pool", "worker_states"),
    ]


def test_it_has_the_workers_default_limit() -> None:
    assert Settings.model_fields["max_body_bytes"].default == MAX_BODY_BYTES


async def test_a_request_is_recorded_with_its_fields() -> None:
    fake = FakeFlowRunClient(timeout=7)
    headers = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}
    run = await fake.create_flow_run(
        FLOW_ID, parameters={"a": 1}, idempotency_key="k", headers=headers, expires=3, state="scheduled"
    )
    message_id = await fake.publish({"deployment_name": "no/such"})
    created, refused = fake.requests
    assert created.fields == {
        "flow_id": FLOW_ID,
        "parameters": {"a": 1},
        "idempotency_key": "k",
        "state": {"type": "SCHEDULED"},
    }
    assert (created.flow_id, created.parameters, created.idempotency_key) == (FLOW_ID, {"a": 1}, "k")
    assert (created.type, created.headers, created.reply) == ("create_flow_run", headers, True)
    assert (created.timeout, created.expires) == (7, 3)
    assert (created.status, created.record, created.error) == (201, run, None)
    assert run.state is not None
    assert run.state.state_details.traceparent == headers["traceparent"]
    assert (refused.deployment, refused.reply, refused.message_id) == ("no/such", False, message_id)
    assert (refused.status, type(refused.error)) == (404, NotFound)


async def test_a_wrong_request_is_not_sent() -> None:
    fake = FakeFlowRunClient()
    with pytest.raises(InvalidFlowRun):
        await fake.create_flow_run("none")
    with pytest.raises(TypeError, match="is it 'parameters'"):
        await fake.create_flow_run(FLOW_ID, parameter={})  # type: ignore[call-arg]
    assert fake.requests == fake.runs == []


def test_a_wrong_url_is_refused() -> None:
    with pytest.raises(InvalidURL):
        FakeFlowRunClient("http://nowhere")


@pytest.mark.parametrize(
    "error", [AccessRefused, BrokerGone, ClientError, MessageRefused, NotRoutable, NotTaken]
)
@pytest.mark.parametrize("served", [False, True])
async def test_a_call_fails_on_demand(error: type[ClientError], served: bool) -> None:
    fake = FakeFlowRunClient()
    fake.fail_next(error, served=served)
    with pytest.raises(error) as failed:
        await fake.create_flow_run(FLOW_ID)
    assert failed.value.maybe_sent is served
    assert len(fake.runs) == served
    assert (fake.requests[0].status, fake.requests[0].error) == (0, failed.value)
    await fake.create_flow_run(FLOW_ID)  # only one call


def test_an_error_that_no_client_raises_is_refused() -> None:
    with pytest.raises(TypeError, match="TimeoutError is no ClientError"):
        FakeFlowRunClient().fail_next(TimeoutError)  # type: ignore[arg-type]


async def test_a_reply_may_be_lost() -> None:
    fake = FakeFlowRunClient(timeout=9)
    for error in (NoReply, NotConfirmed):
        fake.fail_next(error, served=True)
        with pytest.raises(error, match="within 9 seconds") as failed:
            await fake.create_flow_run(FLOW_ID, idempotency_key="k")
        assert failed.value.message_id == fake.requests[-1].message_id  # type: ignore[attr-defined]
    fake.fail_next(UnreadableReply)
    with pytest.raises(UnreadableReply):
        await fake.create_flow_run(FLOW_ID, idempotency_key="k")
    assert len(fake.runs) == 1


async def test_an_instance_of_an_error_is_raised_each_time_anew() -> None:
    fake, error = FakeFlowRunClient(), NotTaken("full")
    fake.fail_next(error, 2)
    outcomes = [each async for each in fake.create_many([{"flow_id": FLOW_ID}] * 3)]
    failed = [each.error for each in outcomes if each.error is not None]
    assert [str(each) for each in failed] == ["full It was not sent."] * 2
    assert error not in failed
    assert len(fake.runs) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, FlowRunRefused), (404, NotFound), (409, Conflict), (422, InvalidFlowRun)],
)
async def test_a_request_is_refused_on_demand(status: int, error: type[FlowRunRefused]) -> None:
    fake = FakeFlowRunClient()
    fake.refuse_next(status, "because")
    fake.fail_next(error)
    with pytest.raises(error, match=f"^{status}: because$"):
        await fake.create_flow_run(FLOW_ID)
    with pytest.raises(error, match=f"^{status}: "):
        await fake.create_flow_run(FLOW_ID)
    assert not fake.runs
    fake.fail_next(NotTaken, when=lambda request: request.parameters.get("order") == 2)
    fake.refuse_next(status, "because", when=lambda request: request.parameters.get("order") == 3)
    requests = [{"flow_id": FLOW_ID, "parameters": {"order": order}} for order in (1, 2, 3, 4)]
    outcomes = sorted([each async for each in fake.create_many(requests)], key=lambda each: each.index)
    assert [type(each.error) for each in outcomes] == [type(None), NotTaken, error, type(None)]
    with pytest.raises(ValueError, match="no refusal"):
        fake.refuse_next(503, "down")


async def test_ids_stand_for_rows_unless_it_is_strict() -> None:
    fake = FakeFlowRunClient()
    fields: dict[str, Any] = {"parent_task_run_id": uuid4(), "infrastructure_document_id": uuid4()}
    await fake.create_flow_run(FLOW_ID, **fields)
    fake.strict = True
    with pytest.raises(Conflict):
        await fake.create_flow_run(FLOW_ID)
    flow_id = fake.flow("mine", id=FLOW_ID)
    assert flow_id == UUID(FLOW_ID)
    await fake.create_flow_run(FLOW_ID)
    for name, value in fields.items():
        with pytest.raises(Conflict, match="There is no"):
            await fake.create_flow_run(FLOW_ID, **{name: value})


async def test_a_schema_may_be_a_model() -> None:
    class Order(BaseModel):
        order: int

    fake = FakeFlowRunClient()
    fake.deployment("a/b", schema=Order)
    with pytest.raises(Conflict, match="'order' is a required property"):
        await fake.run_deployment("a/b")


async def test_a_deployment_is_replaced_by_its_name() -> None:
    fake = FakeFlowRunClient()
    deployment_id = fake.deployment("a/b", tags=["old"])
    assert fake.deployment("a/b", tags=["new"]) == deployment_id
    other = fake.deployment("a/c")
    runs = [await fake.run_deployment(each) for each in (deployment_id, other)]
    assert runs[0].tags == ["new"]
    assert runs[0].flow_id == runs[1].flow_id == fake.flow("a")
    moved = fake.deployment("a/b", id=uuid4())
    assert (await fake.run_deployment("a/b")).deployment_id == moved
    with pytest.raises(NotFound):
        await fake.run_deployment(deployment_id)
    for name in ("a", "a/", "/b", "a/b/c"):
        with pytest.raises(ValueError, match="FLOW NAME/DEPLOYMENT NAME"):
            fake.deployment(name)


async def test_runs_are_moved_on() -> None:
    fake = FakeFlowRunClient()
    run = await fake.create_flow_run(FLOW_ID)
    fake.set_state(run, "running")
    ended = fake.finish(run, "FAILED", message="no disk", name="Broken")
    assert fake.runs == [ended]
    assert ended.state is not None
    assert (ended.state_name, ended.state.message) == ("Broken", "no disk")
    assert ended.total_run_time > timedelta(0)
    assert fake.finish(str(run.id)).state_type == "COMPLETED"
    with pytest.raises(ValueError, match="does not end in the state RUNNING"):
        fake.finish(run, "RUNNING")
    with pytest.raises(LookupError):
        fake.finish(uuid4())


async def test_runs_end_by_themselves() -> None:
    fake = FakeFlowRunClient()
    fake.deployment("a/b", ends="FAILED")
    fake.flow("c", id=FLOW_ID, ends="COMPLETED")
    runs = [await fake.run_deployment("a/b"), await fake.create_flow_run(FLOW_ID)]
    assert [run.state_type for run in runs] == ["SCHEDULED", "PENDING"]
    assert [run.state_type for run in fake.runs] == ["FAILED", "COMPLETED"]


async def test_a_wait_ends_with_the_run() -> None:
    fake = FakeFlowRunClient()
    fake.deployment("a/b", ends="CRASHED")
    run = await fake.run_deployment("a/b", wait=True)
    assert run.state_type == "CRASHED"
    waiting = asyncio.create_task(fake.create_flow_run(FLOW_ID, wait=True))
    while len(fake.runs) < 2:
        await asyncio.sleep(0)
    fake.set_state(fake.runs[1], "RUNNING")
    assert not waiting.done()
    fake.finish(fake.runs[1])
    assert (await waiting).state_type == "COMPLETED"
    assert len(fake.requests) == 2  # waiting sends none


async def test_a_wait_fails_on_demand() -> None:
    fake = FakeFlowRunClient()
    fake.fail_next(WaitTimedOut)
    with pytest.raises(WaitTimedOut) as over:
        await fake.create_flow_run(FLOW_ID, wait=True)
    assert over.value.record is not None
    assert over.value.record.id == fake.runs[0].id
    assert over.value.maybe_sent
    fake.fail_next(WaitTimedOut("late"))
    with pytest.raises(WaitTimedOut, match="late"):
        await fake.wait_for_flow_run(fake.runs[0].id)
    fake.fail_next(StatesNotTold)
    with pytest.raises(StatesNotTold) as not_told:
        await fake.create_flow_run(FLOW_ID, wait=True)
    assert not not_told.value.maybe_sent
    assert len(fake.runs) == 1


async def test_states_are_told_as_the_setting_says() -> None:
    fake = FakeFlowRunClient()
    fake.worker_states = "off"
    with pytest.raises(StatesNotTold):
        await fake.create_flow_run(FLOW_ID, wait=True)
    with pytest.raises(StatesNotTold):
        await anext(fake.states())
    with pytest.raises(FlowRunRefused, match="400: states are not told here"):
        await fake.request({"id": uuid4()}, type="read_flow_run")
    fake.worker_states = "final"
    following = asyncio.create_task(anext(fake.states(f"#.{FLOW_ID}.-.*")))
    await asyncio.sleep(0)
    await fake.run_deployment(fake.deployment("a/b", ends="FAILED"))
    run = await fake.create_flow_run(FLOW_ID, state="RUNNING")
    assert not following.done()
    fake.finish(run)
    assert (await following).state_name == "Completed"


async def test_closing_ends_waits() -> None:
    fake, client = FakeFlowRunClient(), FlowRunClient(URL)
    with fake.intercept():
        waits = [asyncio.create_task(each.create_flow_run(FLOW_ID, wait=True)) for each in (fake, client)]
        while len(fake.runs) < 2:
            await asyncio.sleep(0)
        await fake.close()
        await client.close()
    for wait in waits:
        with pytest.raises(BrokerGone):
            await wait


def test_a_blocking_wait_ends_by_another_thread() -> None:
    with BlockingFake() as fake:
        run = fake.create_flow_run(FLOW_ID)
        finishing = threading.Timer(0.05, fake.finish, [run, "CANCELLED"])
        finishing.start()
        assert fake.wait_for_flow_run(run.id).state_type == "CANCELLED"
        finishing.join()


async def test_a_run_is_read() -> None:
    fake = FakeFlowRunClient()
    run = await fake.create_flow_run(FLOW_ID)
    fake.finish(run)
    read = await fake.request({"id": run.id}, type="read_flow_run")
    assert (read.status, read.record) == (200, fake.runs[0])
    with pytest.raises(NotFound, match="There is no flow run"):
        await fake.request({"id": uuid4()}, type="read_flow_run")


async def test_all_clients_are_intercepted_and_then_no_more() -> None:
    client, fake, other = FlowRunClient(URL), FakeFlowRunClient(), FakeFlowRunClient()
    with fake.intercept() as same, BlockingClient(URL) as blocking:
        assert same is fake
        await client.create_flow_run(FLOW_ID)
        await asyncio.to_thread(blocking.create_flow_run, FLOW_ID)
        with other.intercept():
            await client.create_flow_run(FLOW_ID)
            await asyncio.to_thread(blocking.create_flow_run, FLOW_ID)
        await client.create_flow_run(FLOW_ID)
    assert (len(fake.runs), len(other.runs)) == (3, 2)
    with pytest.raises(BrokerGone):
        await client.create_flow_run(FLOW_ID, timeout=0.2)
    await client.close()


async def test_a_closed_fake_is_closed() -> None:
    async with FakeFlowRunClient() as fake:
        await fake.create_flow_run(FLOW_ID)
    with pytest.raises(BrokerGone):
        await fake.create_flow_run(FLOW_ID)
    with BlockingFake() as blocking:
        blocking.create_flow_run(FLOW_ID)
    with pytest.raises(BrokerGone):
        blocking.create_flow_run(FLOW_ID)


async def test_many_threads_make_one_run_of_a_key() -> None:
    with BlockingFake() as fake:
        calls = [
            asyncio.to_thread(fake.request, {"flow_id": FLOW_ID, "idempotency_key": str(number % 5)})
            for number in range(50)
        ]
        outcomes = await asyncio.gather(*calls)
    assert sorted(outcome.status for outcome in outcomes) == [200] * 45 + [201] * 5
    assert len(fake.runs) == 5
