"""Takes many messages of a queue at once: a consumer for a known number of them, which leaves them
unacknowledged. Taking them one by one costs a round trip to the quorum queue for each.
"""

import asyncio

from aio_pika.abc import AbstractChannel, AbstractQueue

from worker.amqp.reading import read
from worker.amqp.transport import Connection
from worker.broker.connection import lost_with
from worker.broker.incoming import read_message
from worker.contract.delivery import Delivery
from worker.tasks.mailbox import Mailbox

# The largest prefetch count in AMQP.
MOST = 65_535
# Pause reading the socket while more bytes of bodies than these wait here. One body may be larger.
MAX_BYTES = 8 * 1024 * 1024
# The queue has no more messages if none comes for this many seconds, this often in a row.
_IDLE, _IDLE_TIMES = 0.5, 4


class Stream:
    """The next messages of a queue.

    Args:
        connection: of this stream alone: reading from it pauses.
        wanted: the number of messages to take, at most :data:`MOST`. As none is acknowledged
            meanwhile, the prefetch keeps the broker from delivering any more.
    """

    def __init__(
        self, connection: Connection, channel: AbstractChannel, queue: AbstractQueue, wanted: int
    ) -> None:
        self._frames = connection.frames
        self._channel = channel
        self._queue = queue
        self._missing = wanted
        self._consume = read(connection, channel, self._came)
        self._waiting: Mailbox[Delivery] = Mailbox()
        self._bytes = 0
        self._paused = False
        self._tag: str | None = None

    async def take(self) -> Delivery | None:
        """The next message. None if no more come; the consumer is then cancelled.

        Raises:
            ChannelLost: the channel ended.
        """
        if self._tag is None and self._missing:
            self._tag = await self._open()
        idle = 0
        while self._missing and idle < _IDLE_TIMES:
            try:
                async with asyncio.timeout(_IDLE):
                    taken = await self._waiting.take(1)
            except TimeoutError:
                idle += 1  # somebody else has taken some
                continue
            if not taken:
                with lost_with(self._channel):
                    raise ConnectionError
            (delivery,) = taken
            self._missing -= 1
            self._bytes -= delivery.size
            if self._paused and self._bytes <= MAX_BYTES // 2:
                self._paused = False
                self._frames.resume_reading()
            return delivery
        await self.cancel()
        return None

    async def cancel(self) -> None:
        """Take no more.

        Raises:
            ChannelLost: the channel ended.
        """
        self._missing = 0
        if self._tag is not None:
            tag, self._tag = self._tag, None
            with lost_with(self._channel):
                await self._queue.cancel(tag)

    async def _open(self) -> str:
        self._channel.close_callbacks.add(self._closed)
        with lost_with(self._channel):
            await self._channel.set_qos(prefetch_count=self._missing)
            return await self._queue.consume(self._consume)

    def _came(self, tag: int, properties: bytes, body: bytes, redelivered: bool, _: bytes) -> None:
        """Take a delivery. Called within a read of the socket."""
        self._bytes += len(body)
        if self._bytes > MAX_BYTES and not self._paused:
            self._paused = True
            self._frames.pause_reading()
        self._waiting.put(Delivery(tag, read_message(properties, body, redelivered=redelivered)))

    def _closed(self, *_: object) -> None:
        self._waiting.close()
