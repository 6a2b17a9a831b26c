"""The producer's tests. They need no broker, no worker and no Prefect."""

from datetime import UTC, datetime

import orders
import pytest
from flow_run_worker.client import BrokerGone, NoReply
from flow_run_worker.client.testing import FakeFlowRunClient

SCHEMA = {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]}
FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


@pytest.fixture
def fake(fake_flow_runs: FakeFlowRunClient) -> FakeFlowRunClient:
    fake_flow_runs.deployment(orders.DEPLOYMENT, schema=SCHEMA, tags=["invoices"], work_pool="cluster")
    return fake_flow_runs


async def test_an_order_starts_a_run(fake: FakeFlowRunClient) -> None:
    run_id = await orders.place(4711)
    (request,) = fake.requests
    assert request.deployment == "invoices/nightly"
    assert request.parameters == {"order": 4711}
    assert request.expires == request.timeout == 5
    (run,) = fake.runs
    assert str(run.id) == run_id
    assert (run.state_name, run.tags, run.work_pool_name) == ("Scheduled", ["invoices"], "cluster")


async def test_an_order_is_placed_once(fake: FakeFlowRunClient) -> None:
    assert await orders.place(4711) == await orders.place(4711)
    assert [request.status for request in fake.requests] == [201, 200]


async def test_an_order_may_start_later(fake: FakeFlowRunClient) -> None:
    start = datetime(2030, 1, 1, 12, tzinfo=UTC)
    await orders.place(4711, start=start)
    assert fake.runs[0].next_scheduled_start_time == start


@pytest.mark.parametrize("end", ["COMPLETED", "FAILED"])
async def test_the_end_of_an_order_is_known(fake_flow_runs: FakeFlowRunClient, end: str) -> None:
    fake_flow_runs.deployment(orders.DEPLOYMENT, ends=end)
    assert await orders.place_and_wait(4711) is (end == "COMPLETED")


async def test_parameters_have_to_fit(fake: FakeFlowRunClient) -> None:
    with pytest.raises(orders.WrongOrder, match="'4711' is not of type 'integer'"):
        await orders.place("4711")  # type: ignore[arg-type]
    assert not fake.runs


async def test_the_deployment_has_to_exist(fake_flow_runs: FakeFlowRunClient) -> None:
    with pytest.raises(orders.WrongOrder, match="There is no deployment 'invoices/nightly'"):
        await orders.place(4711)


async def test_without_a_broker_an_order_fails(fake: FakeFlowRunClient) -> None:
    fake.fail_next(BrokerGone)
    with pytest.raises(orders.TryLater):
        await orders.place(4711)
    assert not fake.runs


async def test_after_a_lost_reply_an_order_can_be_placed_again(fake: FakeFlowRunClient) -> None:
    fake.fail_next(NoReply, served=True)
    with pytest.raises(orders.TryLater):
        await orders.place(4711)
    run_id = await orders.place(4711)
    assert [str(run.id) for run in fake.runs] == [run_id]


async def test_many_orders_fail_one_by_one(fake: FakeFlowRunClient) -> None:
    fake.refuse_next(422, "not on a Sunday")
    assert await orders.place_all([1, 2, 3]) == [1]
    assert [run.parameters for run in fake.runs] == [{"order": 2}, {"order": 3}]


def test_a_blocking_script_is_tested_too(fake: FakeFlowRunClient) -> None:
    assert orders.remind(FLOW_ID) == fake.runs[0].name
    assert fake.requests[0].fields == {"flow_id": FLOW_ID, "tags": ["reminder"]}
