"""``WORKER_BINDINGS``: the request queue at exchanges that others own."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractExchange
from pamqp.commands import Basic
from yarl import URL

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.processes import wait_until
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from worker.broker.connection import connect
from worker.broker.topology import Topology
from worker.broker.topology_watch import TopologyWatch
from worker.contract.topology import QueueNames, read_bindings
from worker.observability import metrics
from worker.store import Store

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(180):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.fixture
async def channel(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    connection = await connect(amqp_url, name="test", connection_class=aio_pika.Connection)
    yield await connection.channel()
    await connection.close()


@pytest.fixture
def shop() -> str:
    """The name of an exchange of others, not made yet."""
    return f"shop:{uuid4().hex[:8]}"


async def arrives(exchange: AbstractExchange, routing_key: str) -> bool:
    """Whether a message reaches a queue."""
    answer = await exchange.publish(aio_pika.Message(b"{}"), routing_key)
    return isinstance(answer, Basic.Ack)


async def test_a_missing_exchange_is_waited_for_while_requests_are_served(
    start_worker: StartWorker, sqlite_url: str, channel: AbstractChannel, producer: Producer, shop: str
) -> None:
    worker = start_worker(sqlite_url, bindings=f"{shop}:order.*, {shop}-2:")
    wait_until(lambda: "topology_faulty" in worker.output, "the log line")
    status, state = worker.readiness()
    assert status == 200, "requests are served"
    for name in (shop, f"{shop}-2"):
        assert f"to the exchange '{name}' waits: no exchange" in state["topology"]
    assert worker.metric("flow_run_worker_topology_faulty") == 1
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201
    exchange = await channel.declare_exchange(shop, "topic", auto_delete=True)
    await until(lambda: arrives(exchange, "order.created"))
    assert not await arrives(exchange, "other")
    fanout = await channel.declare_exchange(f"{shop}-2", "fanout", auto_delete=True)
    await until(lambda: arrives(fanout, "anything"))
    wait_until(lambda: "topology" not in worker.readiness()[1], "a topology without fault")
    assert "topology_stands" in worker.output
    await producer.dead_letters(2)
    assert worker.terminate() == 0
    assert await arrives(exchange, "order.created"), "it stays bound"
    await channel.queue_delete(producer.queue)


async def test_an_exchange_that_is_made_anew_is_bound_again_and_nothing_is_unbound(
    amqp_url: str, queue: str, channel: AbstractChannel, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = Topology.of(QueueNames(queue, bindings=read_bindings(f"{shop}:order.*")))
    watch = TopologyWatch(amqp_url, None, topology, every=0.1)
    declared = await channel.declare_queue(queue, durable=True, arguments=topology.queues[queue])
    by_hand = await channel.declare_exchange(f"{shop}-by-hand", "fanout", auto_delete=True)
    await declared.bind(by_hand)
    monkeypatch.setattr(metrics.readiness, "broker", None)
    watch.start()
    try:
        for _ in range(3):
            exchange = await channel.declare_exchange(shop, "topic")
            await until(partial(arrives, exchange, "order.created"))
            await declared.bind(exchange, "invoice.*")
            await asyncio.sleep(0.3)
            assert await arrives(exchange, "invoice.paid")
            await exchange.delete()
        assert await arrives(by_hand, "")
    finally:
        await watch.stop()
        metrics.topology_faulty(None)
        await channel.queue_delete(queue)


async def test_rights_are_named_and_the_operator_may_bind_instead(
    rabbitmq: RabbitMQ,
    amqp_url: str,
    queue: str,
    start_worker: StartWorker,
    sqlite_url: str,
    channel: AbstractChannel,
    producer: Producer,
    shop: str,
) -> None:
    exchange = await channel.declare_exchange(shop, "topic", auto_delete=True)
    bindings = f"{shop}:order.*"
    done = await command("topology", "show", queue=queue, bindings=bindings)
    assert f"{shop} -> {queue}" in done.out
    done = await command("topology", "declare", amqp_url=amqp_url, queue=queue, bindings=f"{bindings},no:x")
    assert done.code == 1
    assert "Not bound: The binding of" in done.err
    assert "to the exchange 'no' waits" in done.err
    assert await arrives(exchange, "order.created"), "the others are bound"
    assert (await command("doctor", amqp_url=amqp_url, queue=queue, bindings="no:x")).out.count(
        "exchange no: does not stand yet"
    ) == 1

    name = f"user-{queue}"
    of_queue, of_exchange = re.escape(queue), re.escape(shop)
    rabbitmq.ctl("add_user", name, "secret")
    rabbitmq.ctl("set_permissions", name, "^$", r"^amq\.default$", f"^{of_queue}$")
    url = str(URL(amqp_url).with_user(name).with_password("secret"))
    worker = start_worker(sqlite_url, amqp_url=url, bindings=bindings)
    wait_until(lambda: "topology_faulty" in worker.output, "the log line")
    status, state = worker.readiness()
    assert status == 200
    assert f"This user may not make the binding of '{queue}' to the exchange '{shop}'" in state["topology"]
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201
    # The rights that the page names are enough.
    rabbitmq.ctl(
        "set_permissions", name, "^$", rf"^(amq\.default|{of_queue})$", f"^({of_queue}|{of_exchange})$"
    )
    wait_until(lambda: "topology" not in worker.readiness()[1], "a topology without fault")
    assert worker.terminate() == 0
    await channel.queue_delete(queue)


@pytest.mark.parametrize("kind", ["any", "prefect"])
async def test_plain_messages_need_a_prefect_servers_database(
    start_worker: StartWorker, database_url: str, kind: str
) -> None:
    await (await Store.open(database_url, migrate=True, kind="standalone")).close()
    worker = start_worker(database_url, wait=False, deployment="ship/production", database_kind=kind)
    assert worker.process.wait(180) == 2
    assert "needs a Prefect server's database" in worker.output


def test_plain_messages_in_a_database_of_our_own_are_wrong_settings(
    start_worker: StartWorker, sqlite_url: str
) -> None:
    worker = start_worker(sqlite_url, wait=False, deployment="ship/production", database_kind="standalone")
    assert worker.process.wait(180) == 2
    assert "WORKER_DEPLOYMENT: needs a Prefect server's database" in worker.output
