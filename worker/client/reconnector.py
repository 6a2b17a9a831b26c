"""Publishes on a connection that is opened for the first message, and again after a loss."""

import asyncio

import aio_pika

from ..backoff import Backoff
from ..broker.connection import BrokerRefused, BrokerUnavailable
from .connection import ClientConnection
from .errors import BrokerGone, ClientError
from .replies import Reply

# How often a broker that can't be reached is tried, over some 3 seconds.
CONNECT_TRIES = 5


class Reconnector:
    """Holds one connection at a time, for any number of tasks.

    Args:
        urls: as :func:`worker.broker.connection.connect` takes them.
        pauses: waits between a lost connection and the next. They start anew once the broker has
            answered.
    """

    def __init__(self, urls: str, pauses: Backoff) -> None:
        self._urls = urls
        self._pauses = pauses
        self._opening = asyncio.Lock()
        self._closed = False
        self.current: ClientConnection | None = None

    async def publish(self, queue: str, message: aio_pika.Message) -> "asyncio.Future[Reply] | None":
        """As :meth:`ClientConnection.publish`.

        Raises:
            BrokerGone, AccessRefused: also where no connection can be made.
        """
        connection = await self._connection()
        try:
            reply = await connection.publish(queue, message)
        except ClientError:
            self._pauses.reset()
            raise
        self._pauses.reset()
        return reply

    async def close(self) -> None:
        """Close the connection for good."""
        self._closed = True
        connection, self.current = self.current, None
        if connection is not None:
            await connection.close()

    async def _connection(self) -> ClientConnection:
        async with self._opening:
            if self.current is not None and self.current.lost:
                await self.current.close()
                self.current = None
                await self._pauses.sleep()
            failures = Backoff()
            while self.current is None:
                try:
                    self.current = await ClientConnection.open(self._urls)
                except BrokerUnavailable as error:
                    if failures.tries >= CONNECT_TRIES:
                        raise BrokerGone(str(error)) from error
                    await failures.sleep()
                except BrokerRefused as error:
                    raise BrokerGone(str(error)) from error
            connection = self.current
            if self._closed:  # in the meantime
                await self.close()
            return connection
