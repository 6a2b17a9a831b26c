"""Finds the user name that the broker gives a connection. It may differ from the URL's, as with
client certificates and OAuth. Knows no messages.
"""

import re
from uuid import uuid4

import aio_pika
from aio_pika.exceptions import ChannelPreconditionFailed

from worker.broker.connection import close_quietly, lost_with

# RabbitMQ's reason as it closes a channel over another user's name in ``user_id``.
_REAL = re.compile(r"authenticated user was '(.*?)'")


async def login_of(connection: aio_pika.Connection) -> str | None:
    """The user's name, as ``user_id`` must have it; None if the broker does not say.

    A message to a missing queue has the URL's user as ``user_id``. The broker accepts it, or closes
    the channel with the user's real name as the reason.

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
