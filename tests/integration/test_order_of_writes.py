"""What several tasks write to one channel goes out in the order in which it was numbered, however
slow the connection is.
"""

import asyncio
from uuid import uuid4

import aiormq
from pamqp import commands as spec

from worker.broker.delivery import Delivery
from worker.broker.publication import Publication
from worker.broker.session import Session
from worker.broker.topology import Topology

TASKS = 300
# So large that the socket, and then the connection's own queue of frames, is full all the while.
BODY = b"x" * 200_000


async def test_publications_and_acknowledgements_go_out_in_the_order_of_their_tags(
    amqp_url: str, queue: str
) -> None:
    """Another order would take the confirm of one message for that of another, and acknowledge tags
    that are gone already.
    """
    replies = f"replies-{uuid4().hex[:8]}"
    session = await Session.open(amqp_url, Topology.from_queue_name(queue), name="test")
    reader = await aiormq.connect(amqp_url)
    channel = await reader.channel()
    await channel.queue_declare(replies, auto_delete=True)
    for _ in range(TASKS):
        await channel.basic_publish(b"{}", routing_key=queue)
    await session.consume(TASKS)
    deliveries: list[Delivery] = []
    while len(deliveries) < TASKS:
        deliveries += await session.deliveries.take(TASKS)

    async def serve(delivery: Delivery) -> None:
        properties = spec.Basic.Properties()
        confirmation = await session.publish([Publication(replies, properties, BODY, numbered=True)])
        # Sets the tasks apart, as databases and confirms do.
        for _ in range(delivery.tag % 7):
            await asyncio.sleep(0)
        await session.acknowledge([delivery])
        await confirmation.wait(30)
        assert not confirmation.outstanding

    await asyncio.gather(*(serve(delivery) for delivery in deliveries))
    assert not session.lost.done(), session.lost.result()
    numbers = []
    for _ in range(TASKS):
        message = await channel.basic_get(replies, no_ack=True)
        numbers.append(int((message.header.properties.message_id or "").rpartition(".")[2]))
    assert numbers == sorted(numbers)
    await session.close()
    await reader.close()
