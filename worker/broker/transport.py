"""The bytes from and to RabbitMQ, as the transport of an aiormq connection; knows frames, and
nothing of what they say.

aiormq reads each frame by itself and hands it through a queue to a task of its channel, and a
delivery is three frames. Here all that one read of the socket brings is cut at once, and the frames
of a channel that wants them (:class:`BulkChannel`) go straight to it. All others, and all of other
channels, go on to aiormq: the handshake, declarations, heartbeats.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import aiormq
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

# Takes a frame (its type, the bytes it stands in, where its payload begins and ends), or returns
# False for one that is aiormq's.
TakeFrame = Callable[[int, bytes, int, int], bool]

# Type, channel and size of the payload, which an end octet follows.
HEAD = struct.Struct(">BHI")
END = 0xCE
METHOD, HEADER, BODY = 1, 2, 3
KINDS = frozenset({METHOD, HEADER, BODY, 8})  # the last are heartbeats
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
# aiormq gives up a connection on which no frame came for three heartbeats (three minutes by
# default, three seconds at least), and RabbitMQ sends no heartbeat while it sends others. So of
# those that aiormq doesn't see, one tells it this often; seconds.
ALIVE_SECONDS = 1.0


class FrameReader(asyncio.StreamReader):
    """The stream that aiormq reads, without the frames that bulk channels take.

    Attributes:
        takers: what takes the frames of a channel, by its number.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.takers: dict[int, TakeFrame] = {}
        self._now = loop.time
        self._told_alive = 0.0
        self._rest = b""
        # What is no frame is not ours to judge: from there on aiormq gets all of it.
        self._passing = False

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # a transport gives bytes and nothing else
        """Cut what the socket brought into frames, and give each to who takes it."""
        if self._passing:
            super().feed_data(data)
            return
        buffer = self._rest + data if self._rest else data
        at, size = 0, len(buffer)
        taken = 0
        others: list[bytes] = []
        while size - at >= HEAD.size:
            kind, channel, length = HEAD.unpack_from(buffer, at)
            end = at + HEAD.size + length
            if kind in KINDS and end >= size:
                break
            if kind not in KINDS or buffer[end] != END:
                self._passing = True
                break
            take = self.takers.get(channel)
            if take is not None and take(kind, buffer, at + HEAD.size, end):
                taken += 1
            else:
                others.append(buffer[at : end + 1])
            at = end + 1
        if self._passing:
            others.append(buffer[at:])
            at = size
        self._rest = buffer[at:]
        if taken and self._now() > self._told_alive + ALIVE_SECONDS:
            self._told_alive = self._now()
            others.append(HEARTBEAT)
        if others:
            super().feed_data(b"".join(others))

    def feed_eof(self) -> None:
        """The socket has ended, perhaps within a frame."""
        if self._rest:
            super().feed_data(self._rest)
            self._rest = b""
        super().feed_eof()


class Transport(aiormq.TransportFactory):
    """Connects as aiormq's own does, and keeps both ends.

    Attributes:
        reader: what comes in.
        writer: what goes out; each write must be whole frames, as aiormq writes to it as well.
    """

    reader: FrameReader
    writer: asyncio.StreamWriter

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the socket; called by aiormq."""
        tls = options.pop("ssl_context_provider")
        context = await tls.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        self.reader = FrameReader(loop)
        protocol = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, url.host or "", url.port or 0, ssl=context, **options
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        self.writer = asyncio.StreamWriter(transport, protocol, self.reader, loop)
        return self.reader, self.writer


class BulkConnection(aiormq.Connection):
    """An aiormq connection on which bulk channels can be opened, besides aiormq's own."""

    def __init__(self, url: URL) -> None:
        self.transport = Transport()
        super().__init__(url, transport_factory=self.transport)
