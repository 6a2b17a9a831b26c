"""A connection that the broker ends during a write is a lost session, whatever error the socket
raises.
"""

import asyncio

import pytest

from tests.support.rabbitmq import RabbitMQ
from worker.amqp.properties import join
from worker.amqp.publication import Publication
from worker.broker.connection import ChannelLost
from worker.broker.session import Session
from worker.broker.topology import Topology


@pytest.mark.parametrize("attempt", range(5))
async def test_writing_to_a_connection_that_the_broker_closes_is_a_lost_channel(
    rabbitmq: RabbitMQ, queue: str, attempt: int
) -> None:
    topology = Topology(queue)
    session = await Session.open(rabbitmq.url, topology, name="test")

    async def write() -> None:
        while True:
            confirmation = await session.publisher.publish([Publication(queue, join({}), b"{}")] * 10)
            await confirmation.wait(60)

    writing = asyncio.create_task(write())
    await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "by the test")
    async with asyncio.timeout(60):
        with pytest.raises(ChannelLost):
            await writing
        assert "by the test" in str(await session.lost)
    await session.close()


async def test_a_connection_that_is_cut_ends_all_waits(rabbitmq: RabbitMQ, queue: str) -> None:
    """The waits for confirms, for deliveries, and for the broker's answers to a consumer."""
    topology = Topology(queue)
    session = await Session.open(rabbitmq.url, topology, name="test")
    consuming = asyncio.create_task(session.consumer.consume(10))
    taking = asyncio.create_task(session.consumer.deliveries.take(1))
    for connection in session._connections:
        assert connection.frames._socket is not None
        connection.frames._socket.abort()
    async with asyncio.timeout(60):
        await session.lost
        assert await taking == []
        with pytest.raises(ChannelLost):
            await session.publisher.publish([Publication(queue, join({}), b"{}")])
        session.consumer._calm.set()
        with pytest.raises(ChannelLost):
            await consuming
        with pytest.raises(ChannelLost):
            await session.consumer.stop()
        with pytest.raises(ChannelLost):
            async with session.another_publisher():
                pass
        await session.close()
