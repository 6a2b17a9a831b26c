"""The worker's declarations at a real broker: refusals with their remedies."""

from collections.abc import AsyncIterator

import aio_pika
import pytest

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.rabbitmq import RabbitMQ
from worker.broker.connection import connect
from worker.broker.declaring import TopologyMismatch
from worker.broker.topology import Topology


@pytest.fixture
async def connection(amqp_url: str) -> AsyncIterator[aio_pika.Connection]:
    connection = await connect(amqp_url, name="test", connection_class=aio_pika.Connection)
    yield connection
    await connection.close()


async def _told(connection: aio_pika.Connection, topology: Topology) -> str:
    with pytest.raises(TopologyMismatch) as told:
        await topology.ensure(connection)
    return str(told.value)


async def test_the_limit_of_queues_is_not_taken_for_another_queue(
    rabbitmq: RabbitMQ,
    connection: aio_pika.Connection,
    queue: str,
    sqlite_url: str,
    start_worker: StartWorker,
) -> None:
    """No queue exists, so there is nothing to delete."""
    rabbitmq.ctl("set_vhost_limits", '{"max-queues": 0}')
    try:
        told = await _told(connection, Topology(queue))
        assert "queue limit in vhost '/' (0) is reached" in told
        assert "Raise the limit" in told
        assert "Delete it there" not in told
        worker = start_worker(sqlite_url, wait=False)
        assert worker.process.wait(180) == 1
        assert "Raise the limit" in worker.output
        done = await command("topology", "declare", amqp_url=rabbitmq.url, queue=queue)
        assert done.code == 1
        assert "Raise the limit" in done.err
    finally:
        rabbitmq.ctl("clear_vhost_limits")


async def test_what_stands_with_other_arguments_is_to_be_deleted(
    connection: aio_pika.Connection, queue: str
) -> None:
    channel = await connection.channel()
    await channel.declare_queue(f"{queue}.dead", durable=True, arguments={"x-queue-type": "classic"})
    told = await _told(connection, Topology(queue))
    assert "inequivalent arg 'x-queue-type'" in told
    assert "Delete it there" in told


async def test_an_exchange_of_another_type_is_to_be_deleted(
    connection: aio_pika.Connection, queue: str
) -> None:
    topology = Topology(queue)
    channel = await connection.channel()
    await channel.declare_exchange(topology.exchange or "", "topic", durable=True)
    told = await _told(connection, topology)
    assert f"The exchange '{topology.exchange}' stands at the broker with other properties" in told


async def test_a_queue_that_another_connection_has_for_itself_is_told(
    amqp_url: str, connection: aio_pika.Connection, queue: str
) -> None:
    other = await aio_pika.connect(amqp_url)
    await (await other.channel()).declare_queue(queue, exclusive=True)
    told = await _told(connection, Topology(queue))
    assert "Another connection has" in told
    assert "Delete it there" not in told
    done = await command("doctor", amqp_url=amqp_url, queue=queue)
    assert done.code == 1
    assert "Another connection has" in done.out
    await other.close()
