"""The client with a worker that answers oddly, slowly, or not at all."""

import asyncio
import json
import time
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from worker.client import Conflict, CreateOutcome, FlowRunClient, NoReply, NotRoutable, UnreadableReply
from worker.client.sync import FlowRunClient as SyncClient

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
RECORD = json.dumps({"id": FLOW_ID, "flow_id": FLOW_ID, "name": "blue-fox"}).encode()


class OddWorker:
    """Answers each request with the properties and the body in its parameters."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.received: list[AbstractIncomingMessage] = []

    async def start(self) -> None:
        queue = await self._producer.channel.declare_queue(self._producer.queue, auto_delete=True)
        await queue.consume(self._on_request, no_ack=True)

    async def _on_request(self, request: AbstractIncomingMessage) -> None:
        self.received.append(request)
        answer = json.loads(request.body)["parameters"]
        if answer and request.reply_to:
            reply = aio_pika.Message(
                answer["body"].encode(), headers=answer["headers"], correlation_id=request.correlation_id
            )
            await self._producer.channel.default_exchange.publish(reply, routing_key=request.reply_to)


@pytest.fixture
async def odd_worker(producer: Producer) -> OddWorker:
    worker = OddWorker(producer)
    await worker.start()
    return worker


def asking_for(body: bytes | str, **headers: Any) -> dict[str, Any]:
    text = body if isinstance(body, str) else body.decode()
    return {
        "flow_id": FLOW_ID,
        "parameters": {"body": text, "headers": {name.replace("_", "-"): headers[name] for name in headers}},
    }


UNREADABLE = [
    asking_for(RECORD),
    asking_for(RECORD, status="201"),
    asking_for("no JSON", status=201),
    asking_for("{}", status=201),
    asking_for("no JSON", status=422),
    asking_for("[]", status=409),
]


async def test_reply_that_cannot_be_read_is_an_outcome_and_ends_nothing(
    odd_worker: OddWorker, amqp_url: str, queue: str
) -> None:
    good = asking_for(RECORD, status=201)
    requests = [*UNREADABLE, good, good]
    async with FlowRunClient(amqp_url, queue=queue, timeout=20) as client:
        outcomes = {each.index: each async for each in client.create_many(requests, concurrency=2)}
        with pytest.raises(UnreadableReply, match="no status"):
            await client.request(UNREADABLE[0])
    check(outcomes)

    def blocking() -> dict[int, CreateOutcome]:
        with SyncClient(amqp_url, queue=queue, timeout=20) as client:
            return {each.index: each for each in client.create_many(requests)}

    check(await asyncio.to_thread(blocking))


def check(outcomes: dict[int, CreateOutcome]) -> None:
    assert [type(outcomes[index].error) for index in range(8)] == [UnreadableReply] * 6 + [type(None)] * 2
    assert [outcomes[index].status for index in range(8)] == [0, 0, 201, 201, 422, 409, 201, 201]


async def test_reason_of_a_refusal_is_told(odd_worker: OddWorker, amqp_url: str, queue: str) -> None:
    body = '{"detail": "Data integrity conflict. See server logs."}'
    async with FlowRunClient(amqp_url, queue=queue, timeout=20) as client:
        with pytest.raises(Conflict, match=r"^409: There is no such flow") as refused:
            await client.request(asking_for(body, status=409, x_error="There is no such flow."))
        with pytest.raises(Conflict, match=r"^409: Data integrity conflict") as by_an_older_worker:
            await client.request(asking_for(body, status=409))
    assert refused.value.reason == "There is no such flow."
    assert by_an_older_worker.value.reason is None


async def test_timeout_of_a_call_is_its_own_and_names_the_message(
    odd_worker: OddWorker, amqp_url: str, queue: str
) -> None:
    unanswered: dict[str, Any] = {"flow_id": FLOW_ID, "parameters": {}}
    async with FlowRunClient(amqp_url, queue=queue, timeout=300) as client:
        await client.publish(unanswered, timeout=20)
        started = time.monotonic()
        with pytest.raises(NoReply, match=r"within 0\.2 seconds") as by_fields:
            await client.create_flow_run(FLOW_ID, parameters={}, timeout=0.2)
        with pytest.raises(NoReply):
            await client.request(unanswered, timeout=0.2)
        (outcome,) = [each async for each in client.create_many([unanswered], timeout=0.2)]
        assert isinstance(outcome.error, NoReply)
        assert time.monotonic() - started < 20

    def blocking() -> None:
        with SyncClient(amqp_url, queue=queue, timeout=300) as client:
            with pytest.raises(NoReply):
                client.create_flow_run(FLOW_ID, parameters={}, timeout=0.2)
            with pytest.raises(NoReply):
                client.request(unanswered, timeout=0.2)
            (outcome,) = client.create_many([unanswered], timeout=0.2)
            assert isinstance(outcome.error, NoReply)

    await asyncio.to_thread(blocking)
    assert all(b"timeout" not in request.body for request in odd_worker.received)
    ids = [request.message_id for request in odd_worker.received]
    assert by_fields.value.message_id == ids[1]
    assert str(by_fields.value.message_id) in str(by_fields.value)
    assert outcome.error.message_id in ids


async def test_state_may_be_its_type_alone(odd_worker: OddWorker, amqp_url: str, queue: str) -> None:
    parameters = asking_for(RECORD, status=201)["parameters"]
    async with FlowRunClient(amqp_url, queue=queue, timeout=20) as client:
        await client.create_flow_run(FLOW_ID, parameters=parameters, state="SCHEDULED")
    assert json.loads(odd_worker.received[0].body)["state"] == {"type": "SCHEDULED"}


async def test_first_url_that_answers_is_used(
    odd_worker: OddWorker, rabbitmq: RabbitMQ, amqp_url: str, queue: str
) -> None:
    urls = f"amqp://guest:guest@127.0.0.1:1/, {amqp_url}"
    async with FlowRunClient(urls, queue=queue, timeout=20) as client:
        assert (await client.request(asking_for(RECORD, status=201))).created


async def test_queue_of_an_impossible_name_is_not_routable(amqp_url: str) -> None:
    async with FlowRunClient(amqp_url, queue="q" * 300, timeout=20) as client:
        with pytest.raises(NotRoutable, match="No queue can have the name"):
            await client.publish({"flow_id": FLOW_ID})
