"""The producer client: what it raises, and that closing it ends the calls that wait."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.producer import Producer
from worker.client import BrokerGone, FlowRunClient, InvalidFlowRun, NoReply, NotRoutable
from worker.client.sync import FlowRunClient as SyncClient

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


async def test_refusal_is_raised_with_its_errors(shared_worker: Producer, amqp_url: str) -> None:
    async with FlowRunClient(amqp_url, queue=shared_worker.queue) as client:
        with pytest.raises(InvalidFlowRun) as refused:
            await client.request({"flow_id": "none"})
    assert refused.value.status == 422
    assert refused.value.errors[0]["loc"] == ["body", "flow_id"]


async def test_no_such_queue_is_told(amqp_url: str, queue: str) -> None:
    async with FlowRunClient(amqp_url, queue=queue) as client:
        with pytest.raises(NotRoutable, match=queue):
            await client.publish({"flow_id": FLOW_ID})


async def test_no_worker_is_a_timeout(producer: Producer, amqp_url: str, queue: str) -> None:
    await producer.channel.declare_queue(queue, auto_delete=True)
    async with FlowRunClient(amqp_url, queue=queue, timeout=0.3) as client:
        with pytest.raises(NoReply):
            await client.create_flow_run(FLOW_ID)


async def test_closing_ends_waiting_calls(producer: Producer, amqp_url: str, queue: str) -> None:
    await producer.channel.declare_queue(queue, auto_delete=True)
    client = FlowRunClient(amqp_url, queue=queue)
    call = asyncio.create_task(client.create_flow_run(FLOW_ID))
    while not await producer.depth():
        await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(BrokerGone):
        await asyncio.wait_for(call, 5)


async def test_many_are_taken_only_as_others_are_answered(shared_worker: Producer, amqp_url: str) -> None:
    taken = 0

    def requests() -> Iterator[dict[str, str]]:
        nonlocal taken
        for _ in range(300):
            taken += 1
            yield {"flow_id": FLOW_ID}

    async with FlowRunClient(amqp_url, queue=shared_worker.queue) as client:
        seen: set[int] = set()
        async for outcome in client.create_many(requests(), concurrency=20):
            assert outcome.created
            seen.add(outcome.index)
            assert taken - len(seen) <= 20
    assert seen == set(range(300))


async def test_blocking_client_works_under_a_running_loop(shared_worker: Producer, amqp_url: str) -> None:
    """As in a notebook, whose own loop runs in the same thread."""
    with SyncClient(amqp_url, queue=shared_worker.queue) as client:
        run = client.create_flow_run(FLOW_ID, idempotency_key="notebook")
        assert client.request({"flow_id": FLOW_ID, "idempotency_key": "notebook"}).status == 200
        outcomes = list(client.create_many([{"flow_id": FLOW_ID}, {"flow_id": "none"}]))
    assert str(run.flow_id) == FLOW_ID
    assert sorted(outcome.status for outcome in outcomes) == [201, 422]


async def test_lost_connection_publishes_the_same_message_again(producer: Producer, amqp_url: str, queue: str) -> None:
    declared = await producer.channel.declare_queue(queue, auto_delete=True)
    async with FlowRunClient(amqp_url, queue=queue) as client:
        call = asyncio.create_task(client.create_flow_run(FLOW_ID))
        while await producer.depth() < 1:
            await asyncio.sleep(0.01)
        assert client._link is not None
        await client._link.close()
        while await producer.depth() < 2:
            await asyncio.sleep(0.01)
        call.cancel()
    first, again = await declared.get(no_ack=True), await declared.get(no_ack=True)
    assert (first.body, first.message_id, first.correlation_id) == (again.body, again.message_id, again.correlation_id)
