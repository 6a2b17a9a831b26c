"""Connections for work that could end or hold up the session's two. Knows no requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from worker.amqp.transport import Connection
from worker.broker.connection import close_quietly, connect


class Apart:
    """A connection that is open while it is used. Unlike the consuming connection it is always
    read, so that the broker's answers arrive. Its end does not concern the session.

    Args:
        urls: the broker's.
        name: the connection's name in the management UI.
    """

    def __init__(self, urls: str, name: str) -> None:
        self._urls = urls
        self._name = name
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()
        self._users = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """The open connection, or a new one if the last has ended.

        Raises:
            BrokerUnavailable, BrokerRefused: see :func:`worker.broker.connection.connect`.
        """
        self._users += 1
        try:
            async with self._opening:
                if self._connection is None or self._connection.is_closed:
                    self._connection = await connect(self._urls, name=self._name, connection_class=Connection)
                connection = self._connection
            yield connection
        finally:
            self._users -= 1
            if not self._users:
                await self.leave()

    async def leave(self) -> None:
        """Close the connection. The next user opens another."""
        last, self._connection = self._connection, None
        if last is not None:
            await close_quietly(last)
