"""The client finds wrong requests before it connects."""

from typing import Any

import pytest

from worker.client import BrokerGone, FlowRunClient, FlowRunRefused, InvalidFlowRun
from worker.client import reconnector as reconnector_module
from worker.client.message import build_message
from worker.client.sync import FlowRunClient as SyncClient
from worker.contract.deployment_request import CreateFlowRunFromDeployment
from worker.contract.request import CreateFlowRun

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
# A port without a listener.
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"

WRONG: list[Any] = [
    {},
    {"flow_id": "nonsense"},
    {"flow_id": FLOW_ID, "state": "WHATEVER"},
    {"flow_id": FLOW_ID, "state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "tomorrow"}}},
    {"flow_id": FLOW_ID, "unknown": 1},
    {"flow_id": FLOW_ID, "name": "a\0b"},
    {"deployment_name": "ab"},
    {"deployment_name": "a/b", "deployment_id": FLOW_ID},
    b"[]",
    b"no JSON",
]


@pytest.fixture(autouse=True)
def _one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnector_module, "FIRST_SECONDS", 0)


@pytest.mark.parametrize("request_", WRONG, ids=repr)
async def test_wrong_request_is_found_before_it_is_sent(request_: Any) -> None:
    async with FlowRunClient(NOWHERE) as client:
        for call in (client.request, client.publish):
            with pytest.raises(InvalidFlowRun, match=r"It was not sent\.$") as wrong:
                await call(request_)
            assert not wrong.value.maybe_sent
            assert wrong.value.errors
            with pytest.raises(BrokerGone):
                await call(request_, check=False)
        (created,) = [each async for each in client.create_many([request_])]
        (published,) = [each async for each in client.publish_many([request_])]
    assert (type(created.error), created.status, created.request) == (InvalidFlowRun, 422, request_)
    assert (type(published.error), published.message_id) == (InvalidFlowRun, None)


async def test_wrong_header_is_found_before_it_is_sent() -> None:
    async with FlowRunClient(NOWHERE) as client:
        with pytest.raises(FlowRunRefused, match="400: Invalid X-PREFECT-API-VERSION"):
            await client.publish({"flow_id": FLOW_ID}, headers={"x-prefect-api-version": "none"})


async def test_wrong_fields_of_calls_are_found() -> None:
    async with FlowRunClient(NOWHERE) as client:
        with pytest.raises(InvalidFlowRun, match=r"body\.flow_id"):
            await client.create_flow_run("nonsense")
        with pytest.raises(InvalidFlowRun, match=r"body\.deployment_name"):
            await client.run_deployment("ab")
        with pytest.raises(BrokerGone):
            await client.run_deployment("ab", check=False)
    with SyncClient(NOWHERE) as blocking:
        with pytest.raises(InvalidFlowRun):
            blocking.create_flow_run("nonsense")
        with pytest.raises(BrokerGone):
            blocking.create_flow_run("nonsense", check=False)


async def test_type_that_this_client_does_not_know_is_not_checked() -> None:
    async with FlowRunClient(NOWHERE) as client:
        with pytest.raises(BrokerGone):
            await client.publish({"id": FLOW_ID}, type="read_flow_run")


def test_kind_of_a_request_is_seen_by_its_fields() -> None:
    def type_of(request: Any, type: str | None = None) -> str | None:
        return build_message(request, None, type=type).properties.message_type

    of_a_deployment = "create_flow_run_from_deployment"
    assert type_of({"deployment_name": "a/b"}) == of_a_deployment
    assert type_of({"deployment_id": FLOW_ID, "flow_id": None}) == of_a_deployment
    assert type_of({"deployment_id": FLOW_ID, "flow_id": FLOW_ID}) == "create_flow_run"
    assert type_of({}) == "create_flow_run"
    assert type_of({"deployment_name": "a/b"}, "x") == "x"
    assert type_of(CreateFlowRunFromDeployment(deployment_name="a/b"), "x") == of_a_deployment
    assert type_of(CreateFlowRun.model_validate({"flow_id": FLOW_ID})) == "create_flow_run"


@pytest.mark.parametrize(("options", "error"), [({"timeout": "5"}, TypeError), ({"timeout": 0}, ValueError)])
@pytest.mark.parametrize("name", ["timeout", "expires"])
async def test_seconds_that_are_no_positive_number_are_named(
    name: str, options: dict[str, Any], error: type[Exception]
) -> None:
    wrong: dict[str, Any] = {name: options["timeout"]}
    async with FlowRunClient(NOWHERE) as client:
        with pytest.raises(error, match=f"^{name} is "):
            await client.publish({"flow_id": FLOW_ID}, **wrong)
        with pytest.raises(error, match=f"^{name} is "):
            client.publish_many([], **wrong)
    with SyncClient(NOWHERE) as blocking, pytest.raises(error, match=f"^{name} is "):
        blocking.publish({"flow_id": FLOW_ID}, **wrong)


async def test_timeout_of_0_of_a_deployments_run_is_the_clients() -> None:
    """As in Prefect's ``run_deployment``, where it means not to wait for the end of the run."""
    async with FlowRunClient(NOWHERE) as client:
        with pytest.raises(BrokerGone):
            await client.run_deployment("a/b", timeout=0)
    with SyncClient(NOWHERE) as blocking, pytest.raises(BrokerGone):
        blocking.run_deployment("a/b", timeout=0)
