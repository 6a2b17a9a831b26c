"""Keeps a connection for the tasks of one event loop, and replaces a lost one. It knows no
messages.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from ..broker.connection import BrokerRefused, BrokerUnavailable
from ..tasks.backoff import Backoff
from .attempt import SharedAttempt
from .connection import ClientConnection
from .errors import BrokerGone, ClientError

CLOSED = "The client is closed."
# The broker was never reached: most likely it is down, or the URL is wrong. Connecting fails after
# this many seconds, which a restart of the broker takes as well.
FIRST_SECONDS = 6.0
# The longest pause between two tries. Short, since calls wait: a fleet's jitter is enough.
LONGEST_PAUSE = 1.0


@dataclass(slots=True)
class Reached:
    """Whether the broker was ever reached by this client, in any event loop or process."""

    ever: bool = False


class Reconnector:
    """Holds one connection at a time, for any number of tasks of one event loop.

    Tasks that need a connection wait for the same attempt. It goes on while any of them waits, if
    the broker was ever reached. Otherwise it fails after :data:`FIRST_SECONDS`, for all of them.

    Args:
        urls: URLs for :func:`worker.broker.connection.connect`.
        pauses: the pauses after a lost connection. They restart with :meth:`answered`.

    Attributes:
        current: the connection, which may be lost, or None.
        trouble: why there is no connection, or an empty text.
    """

    def __init__(self, urls: str, pauses: Backoff, reached: Reached) -> None:
        self._urls = urls
        self._pauses = pauses
        self._failures = Backoff(longest=LONGEST_PAUSE)
        self._reached = reached
        self._closed = False
        self._next_try = 0.0
        self._attempt = SharedAttempt(self._open)
        self._closing: set[asyncio.Task[None]] = set()
        self._loops_end: AsyncGenerator[None, None] | None = None
        self.current: ClientConnection | None = None
        self.trouble = ""

    async def connection(self) -> ClientConnection:
        """The connection, once there is one.

        Raises:
            BrokerGone, AccessRefused: the attempt failed, or the client was closed.
        """
        if self.current is not None and not self.current.channel.is_closed:
            return self.current
        if self._closed:
            raise BrokerGone(CLOSED)
        task = await self._attempt.ended()
        if task.cancelled():
            raise BrokerGone(CLOSED)
        error = task.exception()
        if isinstance(error, ClientError):
            raise type(error)(*error.args) from error  # each call has an error of its own
        if error is not None:
            raise BrokerGone(f"{error}.") from error
        return task.result()

    def answered(self) -> None:
        """Note that the broker answered a publication, so that the connection works."""
        self._pauses.reset()

    async def close(self) -> None:
        """Close the connection for good. Calls that use it get :class:`ChannelLost`."""
        self._closed = True
        await self._end()

    async def _open(self) -> ClientConnection:
        loop = asyncio.get_running_loop()
        began = loop.time()
        if self.current is not None:
            self._give_up()
            self.trouble = "the connection was lost"
            self._next_try = began + self._pauses.next_delay()
        while True:
            await asyncio.sleep(max(0.0, self._next_try - loop.time()))
            try:
                self.current = await ClientConnection.open(self._urls)
            except RuntimeError as error:  # such as at the interpreter's end
                raise BrokerGone(f"No connection can be made: {error}.") from error
            except (BrokerUnavailable, BrokerRefused) as error:
                self.trouble = str(error)
                self._next_try = loop.time() + self._failures.next_delay()
                passes = isinstance(error, BrokerUnavailable)
                first_over = not self._reached.ever and loop.time() - began >= FIRST_SECONDS
                if not passes or first_over:
                    raise
            else:
                self._reached.ever, self.trouble = True, ""
                self._failures.reset()
                if self._loops_end is None:
                    self._loops_end = self._close_with_the_loop()
                    await anext(self._loops_end)
                return self.current

    async def _close_with_the_loop(self) -> AsyncGenerator[None, None]:
        """Close the connection when the event loop ends.

        ``asyncio.run`` and its like then end all asynchronous generators. They have cancelled the
        connection's tasks before, but without this asyncio would complain about pending ones.
        """
        try:
            yield
        finally:
            self._loops_end = None
            await self._end()

    async def _end(self) -> None:
        await self._attempt.cancel()
        self._give_up()
        if self._closing:
            await asyncio.wait(self._closing)

    def _give_up(self) -> None:
        """Close the connection in the background: a dead one takes seconds."""
        if self.current is not None:
            closing = asyncio.create_task(self.current.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self.current = None
