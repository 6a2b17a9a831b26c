"""The client without a broker: calls end in time, and each error says whether its message may have
been sent.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

import aio_pika
import pytest
from yarl import URL

from tests.support.producer import Producer
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from worker.client import BrokerGone, ClientError, FlowRunClient, NotConfirmed
from worker.client import reconnector as reconnector_module
from worker.client.sync import FlowRunClient as SyncClient

REQUEST = {"flow_id": "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"}
NOT_SENT = "It was not sent."
MAYBE_SENT = "It may have been sent, and may still be served."


@pytest.fixture
async def network(rabbitmq: RabbitMQ) -> AsyncIterator[Proxy]:
    async with Proxy([rabbitmq.port]) as proxy:
        yield proxy


@pytest.fixture
def url(rabbitmq: RabbitMQ, network: Proxy) -> str:
    return str(URL(rabbitmq.url).with_port(network.port))


async def failures(client: FlowRunClient, count: int, **options: float) -> list[ClientError]:
    """The errors of some simultaneous calls, which must all fail."""
    calls = (client.publish(REQUEST, **options) for _ in range(count))
    failed = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, ClientError) for each in failed), failed
    return [each for each in failed if isinstance(each, ClientError)]


async def test_one_failed_round_of_connecting_ends_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnector_module, "FIRST_SECONDS", 0.3)
    async with (
        Proxy([]) as nowhere,
        FlowRunClient(f"amqp://guest:guest@127.0.0.1:{nowhere.port}/", timeout=300) as client,
        asyncio.timeout(60),
    ):
        failed = await failures(client, 50)
    assert {type(each) for each in failed} == {BrokerGone}
    assert len({id(each) for each in failed}) == 50
    assert all(str(each).startswith("No broker answers") for each in failed)
    assert all(str(each).endswith(NOT_SENT) and not each.maybe_sent for each in failed)


async def test_refused_login_ends_all_calls_at_once(amqp_url: str) -> None:
    async with FlowRunClient(str(URL(amqp_url).with_password("wrong")), timeout=300) as client:
        async with asyncio.timeout(60):
            failed = await failures(client, 10)
    assert all("refuses the login" in str(each) and not each.maybe_sent for each in failed)


async def test_timeout_while_connecting_has_the_last_reason() -> None:
    async with Proxy([]) as nowhere:
        url = f"amqp://guest:guest@127.0.0.1:{nowhere.port}/"
        async with FlowRunClient(url) as client:
            (refused,) = await failures(client, 1, timeout=0.5)
            nowhere.silence()
            (silent,) = await failures(client, 1, timeout=1)
    for each in (refused, silent):
        assert isinstance(each, BrokerGone)
        assert not each.maybe_sent
    assert str(refused).startswith(
        "No connection to the broker within 0.5 seconds: No broker answers at amqp://"
    )
    assert "No broker answers at amqp://" in str(silent)


async def test_lost_connection_leaves_it_open_whether_the_message_was_sent(
    network: Proxy, url: str, producer: Producer
) -> None:
    await producer.channel.declare_queue(producer.queue, auto_delete=True)
    async with FlowRunClient(url, queue=producer.queue) as client:
        await client.publish(REQUEST)
        network.silence()
        (unconfirmed,) = await failures(client, 1, timeout=0.5)
        lost = asyncio.create_task(failures(client, 5, timeout=3))
        await asyncio.sleep(0.5)
        network.cut()
        network.close_door()
        network.speak()
        errors = await lost
        (later,) = await failures(client, 1, timeout=0.5)
    assert isinstance(unconfirmed, NotConfirmed)
    assert unconfirmed.maybe_sent
    assert {type(each) for each in errors} == {BrokerGone}
    assert all(str(each).endswith(MAYBE_SENT) and each.maybe_sent for each in errors)
    assert isinstance(later, BrokerGone)
    assert not later.maybe_sent


async def test_closing_says_whether_each_message_may_have_been_sent(
    network: Proxy, url: str, producer: Producer
) -> None:
    await producer.channel.declare_queue(producer.queue, auto_delete=True)
    client = FlowRunClient(url, queue=producer.queue)
    waiting = asyncio.create_task(client.create_flow_run(REQUEST["flow_id"]))
    while not await producer.depth():
        await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(BrokerGone, match=f"The client is closed. {MAYBE_SENT}"):
        await waiting
    with pytest.raises(BrokerGone, match=f"The client is closed. {NOT_SENT}"):
        await client.publish(REQUEST)


async def test_no_call_outlives_its_timeout(network: Proxy, url: str, producer: Producer) -> None:
    """Whatever the network does meanwhile. Both clients: the timeouts of the blocking one are
    measured in its own thread.
    """
    await producer.channel.declare_queue(producer.queue, auto_delete=True)
    late: list[float] = []

    async def call(client: FlowRunClient) -> None:
        began = time.monotonic()
        try:
            await client.create_flow_run(REQUEST["flow_id"], timeout=1)
        except ClientError:
            late.append(time.monotonic() - began - 1)

    async with FlowRunClient(url, queue=producer.queue) as client:
        calls = []
        for happens in (network.silence, network.cut, network.speak, network.cut, network.silence):
            calls += [asyncio.create_task(call(client)) for _ in range(10)]
            await asyncio.sleep(0.4)
            happens()
        await asyncio.gather(*calls)
        network.speak()
    assert len(late) == 50
    assert max(late) < 30  # far from the tens of seconds of closing, and of the client's timeout

    def blocking() -> None:
        with SyncClient(url, queue=producer.queue) as client:
            client.publish(REQUEST)
            network.silence()
            for _ in range(2):
                with pytest.raises(ClientError):
                    client.publish(REQUEST, timeout=0.5)
            network.speak()

    async with asyncio.timeout(60):
        await asyncio.to_thread(blocking)


async def test_restart_of_the_broker_fails_nothing() -> None:
    """Each of the 2,000 messages is in the queue; a second time only after a lost connection."""
    with RabbitMQ() as node:
        queue = {"durable": True, "arguments": {"x-queue-type": "quorum"}}
        async with await aio_pika.connect(node.url) as connection:
            channel = await connection.channel()
            await channel.declare_queue("restart.create", **queue)
            async with FlowRunClient(node.url, queue="restart.create", timeout=300) as client:
                calls = [asyncio.create_task(client.publish(REQUEST)) for _ in range(1000)]
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                restart = asyncio.create_task(asyncio.to_thread(lambda: (node.stop(), node.start())))
                while not restart.done():
                    if len(calls) < 2000:
                        calls.append(asyncio.create_task(client.publish(REQUEST)))
                    await asyncio.sleep(0.001)
                ids = await asyncio.gather(*calls)
        async with await aio_pika.connect(node.url) as connection:
            channel = await connection.channel()
            declared = await channel.declare_queue("restart.create", **queue)
            seen: Counter[str | None] = Counter()
            while message := await declared.get(no_ack=True, fail=False):
                seen[message.message_id] += 1
    assert set(ids) == set(seen)
    assert max(seen.values()) <= 3
