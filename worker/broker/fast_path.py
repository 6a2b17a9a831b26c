"""The fast path: deliveries read, and publications written, many at once. The worker serves without
it as well, by the same callbacks, slower (``WORKER_FAST_PATH=false``).

aiormq reads a delivery as three frames, each through a queue, and makes a task of it; and it makes
objects of all that it writes. What that takes is in the page of measurements.

Of aio-pika, aiormq and pamqp this module and :mod:`worker.broker.transport` use, beyond what they
document (their versions are capped in ``pyproject.toml``;
``tests/integration/test_library_seams.py`` pins each):

- ``aio_pika.Connection.kwargs``, handed to ``aiormq.connect``; ``transport_factory`` among them.
- ``aiormq.TransportFactory.create(url, ssl_context_provider=…)``; that aiormq reads from the stream
  that it returns by ``readexactly``, and takes a heartbeat for a sign of life.
- ``asyncio.StreamReader.feed_data``, ``feed_eof`` and ``set_transport``, overridden; that it calls
  ``pause_reading`` and ``resume_reading`` of what the last is given, and nothing else.
- ``aiormq.Channel``: ``lock``, ``delivery_tag``, ``confirmations`` and ``write_queue``, with
  ``aiormq.abc.ChannelFrame``; and ``on_consumer_cancel_callbacks``.
- ``aiormq.Connection.connection_tune.frame_max``.
- ``pamqp.commands.Basic.Properties.marshal``, which pamqp calls to write a content header.
- ``aio_pika.Channel._connection``, and that asyncio calls ``feed_data`` of the very reader that
  ``aiormq.connection.TCPTransportFactory`` returns (:mod:`worker.broker.control`).
"""

import asyncio
from collections.abc import Callable
from functools import partial

from aio_pika.exceptions import DeliveryError
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel

from worker.broker.control import METHOD, METHOD_ID
from worker.broker.properties import read_message
from worker.broker.publisher import Confirmation, Fate, Publisher
from worker.broker.transport import (
    BODY,
    CONTENT,
    DELIVER,
    HEADER,
    TAG,
    Observer,
    Transport,
)
from worker.contract.delivery import Delivery

# What is written at once at the most; each is copied twice on its way to the socket. Bytes.
WRITE_BYTES = 1024 * 1024


class DeliveryReader(Observer):
    """Puts a channel's deliveries together from their frames: a method, a header, and none or more
    of the body. All other frames are aiormq's.

    Args:
        deliver: is called with each delivery, within a read of the socket.
    """

    def __init__(self, transport: Transport, number: int, deliver: Callable[[Delivery], None]) -> None:
        super().__init__(transport, number)
        self._deliver = deliver
        self._delivers = False
        self._delivery_tag = 0
        self._redelivered = False
        self._properties = b""
        self._parts: list[bytes] = []
        self._missing = 0

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bytes | None:
        if kind == METHOD:
            (method,) = METHOD_ID.unpack_from(buffer, start)
            self._delivers = method == DELIVER
        if not self._delivers:
            return super().take(kind, buffer, start, end)
        if kind == METHOD:
            at = start + METHOD_ID.size
            at += 1 + buffer[at]  # the consumer's tag
            (self._delivery_tag,) = TAG.unpack_from(buffer, at)
            self._redelivered = bool(buffer[at + TAG.size])
            return b""
        if kind == BODY:
            self._missing -= end - start
            self._parts.append(buffer[start:end])
        elif kind == HEADER:
            _, _, self._missing = CONTENT.unpack_from(buffer, start)
            self._properties = buffer[start + CONTENT.size : end]
        if not self._missing:
            self._delivers = False
            parts, self._parts = self._parts, []
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            message = read_message(self._properties, body, redelivered=self._redelivered)
            self._deliver(Delivery(self._delivery_tag, message))
        return b""


class BulkPublisher(Publisher):
    """Writes publications of one call at once, with aiormq's own table of confirms."""

    async def _write(self, confirmation: Confirmation) -> None:
        channel = await self._channel.get_underlay_channel()
        assert isinstance(channel, Channel)
        publications = confirmation.publications
        async with channel.lock:
            # Numbered and queued in one go, so that they are written in the order of their numbers.
            for index in range(len(publications) if channel.publisher_confirms else 0):
                channel.delivery_tag += 1
                confirm = asyncio.get_running_loop().create_future()
                confirm.add_done_callback(partial(_confirmed, confirmation, index))
                channel.confirmations[channel.delivery_tag] = confirm
            frames: list[bytes] = []
            size = 0
            for publication in publications:
                for frame in publication.frames(channel.number, self.frame_max):
                    frames.append(frame)
                    size += len(frame)
                    if size > WRITE_BYTES:
                        await self._put(channel, frames)
                        frames, size = [], 0
            await self._put(channel, frames)
        if not channel.publisher_confirms:
            confirmation.assume_all()

    async def _put(self, channel: Channel, frames: list[bytes]) -> None:
        """Have frames written; returns once the socket takes more. Those of other channels may come
        between two of them, and not within one.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unwritten.add(written)  # fails when the channel ends
        written.add_done_callback(self._unwritten.discard)
        await channel.write_queue.put(
            ChannelFrame(b"".join(frames), should_close=False, drain_future=written)
        )
        await written


def _confirmed(confirmation: Confirmation, index: int, confirm: "asyncio.Future[object]") -> None:
    if not confirm.cancelled():
        refused = isinstance(confirm.exception(), DeliveryError)
        confirmation.answer(index, Fate.REFUSED if refused else Fate.CONFIRMED)
