"""Several tasks write to one channel: the frames go out in the order of their numbers, however slow
the connection is.
"""

import asyncio
from uuid import uuid4

import aiormq

from worker.amqp.properties import join, short_string
from worker.amqp.publication import Confirm, Publication
from worker.broker.session import Session
from worker.broker.topology import Topology
from worker.contract.delivery import Delivery

TASKS = 300
# Large enough that the socket and the connection's own frame queue stay full.
BODY = b"x" * 200_000


async def test_publications_and_acknowledgements_go_out_in_the_order_of_their_tags(
    amqp_url: str, queue: str
) -> None:
    """Another order would assign one message's confirm to another, and acknowledge tags twice."""
    replies, full = f"replies-{uuid4().hex[:8]}", f"full-{uuid4().hex[:8]}"
    topology = Topology(queue)
    session = await Session.open(amqp_url, topology, name="test")
    reader = await aiormq.connect(amqp_url)
    channel = await reader.channel()
    await channel.queue_declare(replies, auto_delete=True)
    nothing = {"x-max-length": 0, "x-overflow": "reject-publish"}
    await channel.queue_declare(full, auto_delete=True, arguments=nothing)
    for _ in range(TASKS):
        await channel.basic_publish(b"{}", routing_key=queue)
    consuming = asyncio.create_task(session.consumer.consume(TASKS))
    acknowledging = asyncio.create_task(session.consumer.acknowledger.run())
    deliveries: list[Delivery] = []
    while len(deliveries) < TASKS:
        deliveries += await session.consumer.deliveries.take(TASKS)
    order: list[int] = []

    async def serve(delivery: Delivery) -> None:
        raw = join({"message_id": short_string(str(delivery.tag))})
        order.append(delivery.tag)
        # One to an existing queue, one to a missing queue, and one to a full queue: each must get
        # its own confirm.
        confirmation = await session.publisher.publish(
            [
                Publication(replies, raw, BODY),
                Publication(f"none-{delivery.tag}", raw, b""),
                Publication(full, raw, b""),
            ]
        )
        # Delay the tasks by different times, as databases and confirms do.
        for _ in range(delivery.tag % 7):
            await asyncio.sleep(0)
        session.consumer.acknowledge([delivery])
        await confirmation.wait(300)
        assert confirmation.confirms == [Confirm.ACK, Confirm.RETURN, Confirm.NACK]

    await asyncio.gather(*(serve(delivery) for delivery in deliveries))
    await consuming
    session.consumer.acknowledger.close()
    await acknowledging
    assert not session.lost.done(), session.lost.result()
    tags = []
    for _ in range(TASKS):
        message = await channel.basic_get(replies, no_ack=True)
        tags.append(int(message.header.properties.message_id or 0))
    assert tags == order
    declared = await channel.queue_declare(queue, passive=True)
    assert declared.message_count == 0
    await session.close()
    await reader.close()
