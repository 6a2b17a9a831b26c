"""Under which name the broker knows the user of a connection: it may be another than the URL's, as
with client certificates and OAuth. Knows no messages.
"""

import re
from uuid import uuid4

import aio_pika
from aio_pika.exceptions import ChannelPreconditionFailed

from worker.broker.connection import close_quietly, lost_with

# In the reason for which RabbitMQ closes a channel over another user's name (``user_id``).
_REAL = re.compile(r"authenticated user was '(.*?)'")


async def login_of(connection: aio_pika.Connection) -> str | None:
    """The user's name, as messages may have it in ``user_id``; None where the broker does not tell.

    It is asked by a message to nobody that has the URL's user in it. The broker takes it, or closes
    the channel and says who it is.

    Raises:
        ChannelLost: the connection ended.
    """
    guess = connection.url.user or "guest"  # as aiormq does
    channel = connection.channel(publisher_confirms=True)
    try:
        with lost_with(channel):
            await channel.initialize()
        try:
            message = aio_pika.Message(b"", user_id=guess)
            await channel.default_exchange.publish(message, f"no-queue-{uuid4()}", mandatory=False)
        except ChannelPreconditionFailed as refused:
            real = _REAL.search(str(refused))
            return real[1] if real else None
        return guess
    finally:
        await close_quietly(channel)
