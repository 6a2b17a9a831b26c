"""A connection that the broker ends under a writer is a lost session, whatever the socket says of
it.
"""

import asyncio

import pytest
from pamqp import commands as spec

from tests.support.rabbitmq import RabbitMQ
from worker.broker.channel import ChannelLost
from worker.broker.publication import Publication
from worker.broker.session import Session
from worker.broker.topology import Topology


@pytest.mark.parametrize("attempt", range(5))
async def test_writing_to_a_connection_that_the_broker_closes_is_a_lost_channel(
    rabbitmq: RabbitMQ, queue: str, attempt: int
) -> None:
    session = await Session.open(rabbitmq.url, Topology.from_queue_name(queue), name="test")

    async def write() -> None:
        while True:
            await session.publish([Publication(queue, spec.Basic.Properties(), b"{}", numbered=True)])
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "by the test")
    with pytest.raises(ChannelLost):
        await asyncio.wait_for(writing, 30)
    await session.close()
