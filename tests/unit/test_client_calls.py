"""The client's errors before anything is sent."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from worker.client import BrokerGone, ClientError, FlowRunClient, InvalidURL
from worker.client.sync import FlowRunClient as SyncClient

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
# A port without a listener.
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:5672",
        "http://localhost/",
        "amqp:///",
        "amqp://guest:secret@localhost:99999/",
        "amqp://guest:secret@[::1",
        "guest:secret@localhost:5672",
        f"{NOWHERE},amqp://",
    ],
)
@pytest.mark.parametrize("client", [FlowRunClient, SyncClient])
def test_wrong_url_is_told_at_once_and_not_shown(
    client: type[FlowRunClient] | type[SyncClient], url: str
) -> None:
    with pytest.raises(InvalidURL) as wrong:
        client(url)
    assert isinstance(wrong.value, (ClientError, ValueError))
    assert "secret" not in str(wrong.value)


async def test_unknown_field_is_refused_with_the_nearest_one() -> None:
    async with FlowRunClient(NOWHERE) as client:
        with pytest.raises(TypeError, match="no field 'paramters'; is it 'parameters'"):
            await client.create_flow_run(FLOW_ID, paramters={})  # type: ignore[call-arg]  # the typo
        with pytest.raises(TypeError, match=r"no field 'xyz'$"):
            await client.create_flow_run(FLOW_ID, xyz=1)  # type: ignore[call-arg]  # the same


def test_blocking_client_refuses_an_unknown_field() -> None:
    with SyncClient(NOWHERE) as client, pytest.raises(TypeError, match="is it 'parameters'"):
        client.create_flow_run(FLOW_ID, parameter={})  # type: ignore[call-arg]  # the typo


@pytest.mark.parametrize("concurrency", [0, -1])
async def test_no_room_for_any_request_is_refused(concurrency: int) -> None:
    async with FlowRunClient(NOWHERE) as client:
        with pytest.raises(ValueError, match=f"concurrency is {concurrency}, and has to be at least 1"):
            await anext(client.create_many([{"flow_id": FLOW_ID}], concurrency=concurrency))
    with SyncClient(NOWHERE) as blocking, pytest.raises(ValueError, match="at least 1"):
        next(blocking.create_many([{"flow_id": FLOW_ID}], concurrency=concurrency))


async def test_run_of_a_deployment_has_a_state_or_a_scheduled_time() -> None:
    later = datetime(2030, 1, 1, tzinfo=UTC)
    async with FlowRunClient(NOWHERE, timeout=0.1) as client:
        with pytest.raises(TypeError, match="a state or a scheduled time, not both"):
            await client.run_deployment("flow/deployment", scheduled_time=later, state="PENDING")
        # A state of None, as from a caller who passes an argument on, counts as no state.
        fields: Any = {"state": None}
        with pytest.raises(BrokerGone):
            await client.run_deployment("flow/deployment", scheduled_time=later, **fields)


async def test_closed_client_says_so() -> None:
    client = FlowRunClient(NOWHERE)
    await client.close()
    await client.close()
    with pytest.raises(BrokerGone, match="The client is closed"):
        await client.publish({"flow_id": FLOW_ID})


def test_closed_blocking_client_says_so() -> None:
    for used in (False, True):
        client = SyncClient(NOWHERE, timeout=0.1)
        if used:
            with pytest.raises(ClientError):
                client.publish({"flow_id": FLOW_ID})
        client.close()
        client.close()
        for call in (client.create_flow_run, client.request, client.publish):
            with pytest.raises(BrokerGone, match="The client is closed"):
                call({"flow_id": FLOW_ID})  # type: ignore[operator]  # whatever it takes
        with pytest.raises(BrokerGone, match="The client is closed"):
            list(client.create_many([{"flow_id": FLOW_ID}]))


async def test_closing_the_blocking_client_ends_calls_of_other_threads() -> None:
    client = SyncClient(NOWHERE)
    calls = [asyncio.create_task(asyncio.to_thread(client.publish, {"flow_id": FLOW_ID})) for _ in range(3)]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(10):
        await asyncio.to_thread(client.close)
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in ended] == [BrokerGone] * 3
