"""Notes the broker's reasons for closing a connection and for blocking publishers, which aiormq
does not make accessible. Knows no messages.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import aio_pika
import aiormq
from aiormq.connection import TCPTransportFactory, TLSTransportFactory
from yarl import URL

from .frames import BLOCKED, CLOSE, HEAD, KINDS, METHOD, METHOD_ID, UNBLOCKED, read_short_string


class Watch(aiormq.TransportFactory):
    """Opens the socket as aiormq's own factory does, and reads the methods of channel 0.

    Attributes:
        closed: the broker's reason for closing the connection, such as
            ``NOT_ALLOWED - vhost x not found``; None if it gave none.
        blocked: the alarm because of which the broker takes no publications, such as ``low on
            memory``; None without an alarm.
        on_blocked: called with each new value of ``blocked``.
        unblocked: set without an alarm.
        blocked_event: set during an alarm.
    """

    def __init__(self) -> None:
        self.closed: str | None = None
        self.blocked: str | None = None
        self.on_blocked: Callable[[str | None], None] = lambda reason: None
        self.unblocked = asyncio.Event()
        self.unblocked.set()
        self.blocked_event = asyncio.Event()

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the socket; called by aiormq. The client speaks first, so nothing is missed."""
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **options)
        setattr(reader, "feed_data", self._watching(reader.feed_data))  # noqa: B010  # mypy: a method
        return reader, writer

    def note(self, buffer: bytes, start: int) -> None:
        """Read the method of channel 0 at ``start``."""
        (method,) = METHOD_ID.unpack_from(buffer, start)
        at = start + METHOD_ID.size
        if method == CLOSE:
            self.closed = read_short_string(buffer, at + 2)  # after its code
        elif method in (BLOCKED, UNBLOCKED):
            self.block(read_short_string(buffer, at) if method == BLOCKED else None)

    def block(self, reason: str | None) -> None:
        """Note the reason of ``connection.blocked``, or None for ``connection.unblocked``."""
        self.blocked = reason
        if reason is None:
            self.blocked_event.clear()
            self.unblocked.set()
        else:
            self.unblocked.clear()
            self.blocked_event.set()
        self.on_blocked(reason)

    def _watching(self, feed: Callable[[Any], None]) -> Callable[[Any], None]:
        """The reader's own ``feed_data``, which also reads the methods of channel 0."""
        rest, skip, passing = b"", 0, False

        def feed_data(data: bytes) -> None:
            nonlocal rest, skip, passing
            feed(data)
            if passing:
                return
            if skip >= len(data):
                skip -= len(data)
                return
            buffer = rest + data[skip:]
            at, size, skip = 0, len(buffer), 0
            while size - at >= HEAD.size:
                kind, channel, length = HEAD.unpack_from(buffer, at)
                end = at + HEAD.size + length + 1
                if kind not in KINDS:  # no frame, such as the header of another AMQP version
                    passing = True
                    return
                if kind == METHOD and not channel:
                    if end > size:
                        break
                    self.note(buffer, at + HEAD.size)
                elif end > size:
                    skip, at = end - size, size
                    break
                at = end
            rest = buffer[at:]

        return feed_data


class WatchedConnection(aio_pika.Connection):
    """An aio-pika connection with a watch. It counts as closed once the broker has ended it.

    Attributes:
        frames: the watch.
    """

    _watch: type[Watch] = Watch

    def __init__(self, url: URL, **options: Any) -> None:
        super().__init__(url, **options)
        self.frames = self._watch()
        self.kwargs["transport_factory"] = self.frames

    @property
    def is_closed(self) -> bool:
        """True after any end. In aio-pika it is true only if we closed the connection."""
        return super().is_closed or (self.transport is not None and self.transport.connection.is_closed)


def watch_of(connection: object) -> Watch | None:
    """The watch of a connection; None if it has none."""
    watch = getattr(connection, "frames", None)
    return watch if isinstance(watch, Watch) else None
