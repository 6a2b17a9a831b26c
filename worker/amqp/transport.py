"""Cuts the bytes from RabbitMQ into frames before aiormq reads them. Knows frames, but no requests.

It is put below an aio-pika connection by aiormq's ``TransportFactory``. It reports what aio-pika
can't: the bytes of a delivery's properties, returned publications, and that the broker blocks
publishers. aiormq gets no properties, since unreadable ones would end the connection with all
messages in flight. Reading can be paused.

Bulk reading and writing (:mod:`reading`, :mod:`writing`) take a channel's deliveries and confirms
here.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from .frames import (
    CONTENT,
    DELIVER,
    END,
    GET_OK,
    HEAD,
    HEADER,
    KINDS,
    METHOD,
    METHOD_ID,
    RETURN,
    TAG,
    read_short_string,
)
from .watch import Watch, WatchedConnection

HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
# RabbitMQ's default in bytes, for a broker that sets no limit (0).
DEFAULT_FRAME_MAX = 131_072
# aiormq gives up a connection without frames for three heartbeats (three minutes by default, three
# seconds at least), and RabbitMQ sends no heartbeats while it sends other frames. So aiormq gets a
# heartbeat at this interval (seconds) for frames that it doesn't see, and while reading is paused.
ALIVE_SECONDS = 1.0
# A host name may have several addresses. Give each but the last this many seconds.
ADDRESS_SECONDS = 3.0


class Observer:
    """Looks at the frames of one channel, for data that aiormq does not report."""

    def __init__(self, transport: "Transport", number: int) -> None:
        self._transport = transport
        self._number = number
        self._tag: int | None = None

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bytes | None:
        """Look at a frame. Called from within a read of the socket: it must neither wait nor raise.

        Args:
            kind: the frame's type.
            buffer: the bytes read from the socket.
            start, end: of the frame's payload in ``buffer``.

        Returns:
            None to pass the frame on to aiormq, or the bytes that replace it.
        """
        if kind == METHOD:
            (method,) = METHOD_ID.unpack_from(buffer, start)
            at = start + METHOD_ID.size
            self._tag = None
            if not self._number:
                self._transport.note(buffer, start)
            elif method == DELIVER:
                (self._tag,) = TAG.unpack_from(buffer, at + 1 + buffer[at])
            elif method == GET_OK:
                (self._tag,) = TAG.unpack_from(buffer, at)
            elif method == RETURN and self._number in self._transport.on_return:
                at += 2  # its code; then reason, exchange and routing key
                for _ in range(2):
                    at += 1 + buffer[at]
                self._transport.on_return[self._number](read_short_string(buffer, at))
        elif kind == HEADER:
            if self._tag is not None:
                self._transport.properties[self._number, self._tag] = buffer[start + CONTENT.size : end]
            # Remove the properties: aiormq's reading them could end the connection.
            content = buffer[start : start + CONTENT.size] + bytes(2)
            return HEAD.pack(HEADER, self._number, len(content)) + content + bytes((END,))
        return None


class FlowControl:
    """Sits between asyncio's stream and its socket. The stream pauses reading while its buffer is
    full, the worker while it holds enough. Reading goes on when neither pauses it.
    """

    def __init__(self, socket: asyncio.ReadTransport) -> None:
        self._socket = socket
        self._paused_by: set[str] = set()

    def pause_reading(self, by: str = "stream") -> None:
        """Called by the stream with this default."""
        self._paused_by.add(by)
        if not self._socket.is_closing():
            self._socket.pause_reading()

    def resume_reading(self, by: str = "stream") -> None:
        """Called by the stream with this default."""
        self._paused_by.discard(by)
        if not self._paused_by and not self._socket.is_closing():
            self._socket.resume_reading()


class FrameReader(asyncio.StreamReader):
    """The stream that aiormq reads.

    Attributes:
        flow: pauses the reading of its socket.
    """

    flow: FlowControl

    def __init__(self, transport: "Transport") -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop=loop)
        self._frames = transport
        self._now = loop.time
        self._told_alive = 0.0
        self._rest = b""
        # After bytes that are no frame, pass everything on: aiormq raises the error.
        self._passing = False

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio's protocol with the socket."""
        self.flow = FlowControl(cast(asyncio.ReadTransport, transport))
        super().set_transport(cast(asyncio.ReadTransport, self.flow))

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # a transport gives bytes alone
        """Cut the socket's bytes into frames, and show each to its channel's observer."""
        if self._passing:
            super().feed_data(data)
            return
        buffer = self._rest + data if self._rest else data
        channels = self._frames.channels
        at, size = 0, len(buffer)
        taken = False
        others: list[bytes] = []
        while size - at >= HEAD.size:
            kind, number, length = HEAD.unpack_from(buffer, at)
            end = at + HEAD.size + length
            if kind in KINDS and end >= size:
                break
            if kind not in KINDS or buffer[end] != END:
                self._passing = True
                others.append(buffer[at:])
                at = size
                break
            if number not in channels:
                channels[number] = Observer(self._frames, number)
            instead = channels[number].take(kind, buffer, at + HEAD.size, end)
            if instead is None:
                others.append(buffer[at : end + 1])
            elif instead:
                others.append(instead)
            else:
                taken = True
            at = end + 1
        self._rest = buffer[at:]
        if others:
            super().feed_data(b"".join(others))
        elif taken:
            self.tell_alive()

    def feed_eof(self) -> None:
        """Pass on the rest: the socket has ended, perhaps within a frame."""
        if self._rest:
            super().feed_data(self._rest)
            self._rest = b""
        super().feed_eof()

    def tell_alive(self) -> None:
        """Give aiormq a heartbeat, once in ``ALIVE_SECONDS``: the broker is alive."""
        if self._now() > self._told_alive + ALIVE_SECONDS:
            self._told_alive = self._now()
            super().feed_data(HEARTBEAT)


class Transport(Watch):
    """Opens the socket as aiormq's own factory does, and looks at all frames that come in.

    Attributes, besides those of :class:`worker.amqp.watch.Watch`:
        channels: the observers by channel number; an :class:`Observer` by default.
        properties: the bytes of the properties of deliveries that aiormq serves, by channel and
            delivery tag. The receiver of the delivery takes them out.
        on_return: by channel, the callback for the routing key of a returned publication.
    """

    def __init__(self) -> None:
        super().__init__()
        self.channels: dict[int, Observer] = {}
        self.properties: dict[tuple[int, int], bytes] = {}
        self.on_return: dict[int, Callable[[str], None]] = {}
        self._reader: FrameReader
        self._socket: asyncio.Transport
        self._pause: asyncio.TimerHandle | None = None

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the socket. Called by aiormq."""
        tls = options.pop("ssl_context_provider")
        context = await tls.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        self._reader = FrameReader(self)
        protocol = asyncio.StreamReaderProtocol(self._reader, loop=loop)
        options |= {"ssl": context, "server_hostname": url.host if context else None}
        try:
            addresses = await loop.getaddrinfo(url.host or "", url.port, type=socket.SOCK_STREAM)
            for number, (*_, address) in enumerate(addresses, start=1):
                try:
                    # A silent address must leave time for the others.
                    async with asyncio.timeout(ADDRESS_SECONDS if number < len(addresses) else None):
                        self._socket, _ = await loop.create_connection(
                            lambda: protocol, *address[:2], **options
                        )
                    break
                except (OSError, TimeoutError):
                    if number == len(addresses):
                        raise
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        return self._reader, asyncio.StreamWriter(self._socket, protocol, self._reader, loop)

    def pause_reading(self) -> None:
        """Read no more from the socket until :meth:`resume_reading`. Earlier data is processed."""
        self._reader.flow.pause_reading("worker")
        self._stay_alive()

    def resume_reading(self) -> None:
        """Read from the socket again."""
        self._reader.flow.resume_reading("worker")
        if self._pause is not None:
            self._pause.cancel()

    def abort(self) -> None:
        """Close the socket at once, and write nothing more."""
        self._socket.abort()

    def _stay_alive(self) -> None:
        if not self._socket.is_closing():
            self._reader.tell_alive()
            self._pause = asyncio.get_running_loop().call_later(ALIVE_SECONDS, self._stay_alive)


class Connection(WatchedConnection):
    """A connection whose watch is a :class:`Transport`."""

    frames: Transport
    _watch = Transport

    def __init__(self, url: URL, **options: Any) -> None:
        super().__init__(url, **options)
        # When the connection ends, waits for the end of an alarm must end as well.
        self.close_callbacks.add(lambda *_: self.frames.unblocked.set())

    @property
    def frame_max(self) -> int:
        """The largest frame in bytes, as agreed with the broker."""
        assert self.transport is not None
        return int(self.transport.connection.connection_tune.frame_max) or DEFAULT_FRAME_MAX
