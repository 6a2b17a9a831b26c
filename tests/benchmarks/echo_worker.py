"""aio-pika's confirmed echo, for comparison: it receives, publishes with a confirm and
acknowledges, without a database or JSON.
"""

import asyncio
import sys

import aio_pika
import uvloop


async def serve(amqp_url: str, _: str, queue_name: str) -> None:
    connection = await aio_pika.connect(amqp_url)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=500)
    queue = await channel.get_queue(queue_name)

    async def on_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with message.process():
            reply = aio_pika.Message(
                message.body,
                correlation_id=message.correlation_id,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await channel.default_exchange.publish(reply, routing_key=message.reply_to or "", mandatory=True)

    await queue.consume(on_message)
    await asyncio.Future()


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:]))
