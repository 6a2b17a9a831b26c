"""Writes publications in bulk past aiormq, and reads their confirms from the frames."""

import asyncio
from collections.abc import Sequence

from aio_pika.abc import AbstractChannel
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from aiormq.exceptions import ChannelInvalidStateError

from .frames import ACK, METHOD, METHOD_ID, NACK, TAG
from .publication import Confirm, Outgoing, Unconfirmed
from .transport import Connection, Observer, Transport

# Write at most this many bytes at once: each is copied twice on its way to the socket.
WRITE_BYTES = 1024 * 1024


class Writer:
    """Publishes on a channel of its own.

    Its methods may be called from several tasks. The publications of one call stay in order.
    """

    def __init__(self, connection: Connection, channel: AbstractChannel) -> None:
        self._channel = channel
        self._frame_max = connection.frame_max
        self.unconfirmed = Unconfirmed()
        self._next = 1
        self._unwritten: set[asyncio.Future[None]] = set()
        number = channel.number or 0
        connection.frames.channels[number] = ConfirmReader(connection.frames, number, self.unconfirmed)
        connection.frames.on_return[number] = self.unconfirmed.returned
        channel.close_callbacks.add(self._closed)

    async def write(self, outgoing: Sequence[Outgoing]) -> None:
        """Write publications. Returns once the socket takes more.

        Raises:
            Exception: one of aio-pika's ``CONNECTION_EXCEPTIONS``: the channel has ended.
            ValueError: a publication can't be written in AMQP.
        """
        channel = await self._channel.get_underlay_channel()
        assert isinstance(channel, Channel)
        async with channel.lock:
            # Number and queue them under one lock: they must be written in the numbers' order.
            if channel.publisher_confirms:
                for each in outgoing:
                    self.unconfirmed.add(self._next, each)
                    self._next += 1
            frames: list[bytes] = []
            size = 0
            for each in outgoing:
                for frame in each.publication.frames(channel.number, self._frame_max):
                    frames.append(frame)
                    size += len(frame)
                    if size > WRITE_BYTES:
                        await self._put(channel, frames)
                        frames, size = [], 0
            await self._put(channel, frames)
        if not channel.publisher_confirms:
            for each in outgoing:
                each.on_confirm(Confirm.ACK)

    def end(self) -> None:
        """Wait no longer for confirms. Nothing waits for them here."""

    async def _put(self, channel: Channel, frames: list[bytes]) -> None:
        """Write whole frames. Frames of other channels may come between two calls."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unwritten.add(written)
        written.add_done_callback(self._unwritten.discard)
        await channel.write_queue.put(
            ChannelFrame(b"".join(frames), should_close=False, drain_future=written)
        )
        await written

    async def _closed(self, _: object, error: BaseException | None) -> None:
        for written in self._unwritten:
            if not written.done():
                written.set_exception(error or ChannelInvalidStateError("closed"))


class ConfirmReader(Observer):
    """Takes a channel's confirms. All other frames go to aiormq."""

    def __init__(self, transport: Transport, number: int, unconfirmed: Unconfirmed) -> None:
        super().__init__(transport, number)
        self._unconfirmed = unconfirmed

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bytes | None:
        if kind == METHOD:
            (method,) = METHOD_ID.unpack_from(buffer, start)
            if method in (ACK, NACK):
                at = start + METHOD_ID.size
                (number,) = TAG.unpack_from(buffer, at)
                confirm = Confirm.ACK if method == ACK else Confirm.NACK
                self._unconfirmed.confirm(number, confirm, multiple=bool(buffer[at + TAG.size] & 1))
                return b""
        return super().take(kind, buffer, start, end)
