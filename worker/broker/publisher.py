"""Publishes with publisher confirms. Knows no requests.

A publisher has a connection of its own, as RabbitMQ's guide to alarms advises: during a memory or
disk alarm the broker stops reading from connections that publish, but acknowledgements must go on.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from worker.amqp import plain
from worker.amqp.properties import join
from worker.amqp.publication import Confirm, Outgoing, Publication
from worker.amqp.transport import Connection
from worker.amqp.writing import Writer
from worker.broker.connection import ChannelLost, close_quietly, lost_with


class Confirmation:
    """The confirms of publications that went out together.

    Attributes:
        publications: in their order.
        confirms: in the same order; None until the broker has answered.
    """

    def __init__(self, publications: Sequence[Publication], ended: "asyncio.Future[ChannelLost]") -> None:
        self.publications = publications
        self.confirms: list[Confirm | None] = [None] * len(publications)
        self._missing = len(publications)
        self._all = asyncio.Event()
        self._ended = ended
        if not publications:
            self._all.set()

    @property
    def all_taken(self) -> bool:
        """True if the broker has taken each publication."""
        return self.confirms.count(Confirm.ACK) == len(self.confirms)

    def confirm(self, index: int, confirm: Confirm) -> None:
        """Note a publication's confirm. Call it once for each."""
        self.confirms[index] = confirm
        self._missing -= 1
        if not self._missing:
            self._all.set()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until the broker has answered for every publication, or for this many seconds.

        Raises:
            ChannelLost: the channel ended first. The broker may have taken unconfirmed ones.
        """
        await _until(self._all, self._ended, seconds)


class Publisher:
    """Publishes to queues by their names, on a channel of its own, with publisher confirms.

    Its methods may be called from several tasks. The publications of one call stay in order.

    Args:
        connection: the channel's.
        channel: used by this publisher only.
        bulk: write past aio-pika; see :mod:`worker.amqp`.

    Attributes:
        ended: done once its channel has ended. Its result is the reason.
        frames: the transport of its connection.
        frame_max: the largest frame in bytes, as agreed with the broker.
    """

    def __init__(self, connection: Connection, channel: AbstractChannel, *, bulk: bool = False) -> None:
        self.ended: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        self.frames = connection.frames
        self.frame_max = connection.frame_max
        self._writer = (Writer if bulk else plain.Writer)(connection, channel)
        self._channel = channel
        # aiormq leaves a channel open that was being opened as its connection ended.
        for each in (channel, connection):
            each.close_callbacks.add(self._closed)
        if connection.is_closed:
            self.ended.set_result(ChannelLost(None))

    async def send(self, outgoing: Sequence[Outgoing]) -> None:
        """Write publications to the wire. Each has a callback for its own confirm.

        Waits while the broker blocks publishers, and while the socket is full.

        Raises:
            ChannelLost: the channel is gone.
            ValueError: a publication can't be written in AMQP.
        """
        await self.frames.unblocked.wait()
        if self.ended.done():
            raise self.ended.result()
        for each in outgoing:
            each.publication.check(self.frame_max)
        try:
            await self._writer.write(outgoing)
        except CONNECTION_EXCEPTIONS as error:
            raise self.ended.result() if self.ended.done() else ChannelLost(error) from error

    async def publish(self, publications: Sequence[Publication]) -> Confirmation:
        """As :meth:`send`, for callers that wait for all confirms together."""
        confirmation = Confirmation(publications, self.ended)
        await self.send(
            [
                Outgoing(publication, partial(confirmation.confirm, index))
                for index, publication in enumerate(publications)
            ]
        )
        return confirmation

    async def answered(self, seconds: float) -> None:
        """Wait until every publication is answered, or for this many seconds.

        Raises:
            ChannelLost: the channel is gone.
        """
        await _until(self._writer.unconfirmed.none, self.ended, seconds)

    def raise_if_lost(self, lost: ChannelLost) -> None:
        """Raise ``lost``, the end of another channel of this connection, if this one has ended too,
        or if a permission is missing: it would be missing here.
        """
        if self.lost or lost.refused:
            raise lost

    @property
    def lost(self) -> bool:
        """True once its channel has ended."""
        return self.ended.done() or self._channel.is_closed

    async def try_out(self, size: int = 0) -> None:
        """Publish a message to a missing queue: the broker returns it, or refuses it.

        Args:
            size: of its body, in bytes.

        Raises:
            ChannelLost: the broker refuses it.
        """
        confirmation = await self.publish([Publication(f"no-queue-{uuid4()}", join({}), bytes(size))])
        await confirmation.wait()

    def end(self, connection: Connection) -> None:
        """Wait no longer for confirms. The connection outlives the channel."""
        connection.close_callbacks.discard(self._closed)
        self._writer.end()

    async def _closed(self, _: object, error: BaseException | None) -> None:
        if not self.ended.done():
            self.ended.set_result(ChannelLost(error))


@asynccontextmanager
async def publisher_on(connection: Connection) -> AsyncIterator[Publisher]:
    """A publisher on a temporary channel of a connection."""
    channel: AbstractChannel = connection.channel(publisher_confirms=True)
    with lost_with(channel):
        await channel.initialize()
    publisher = Publisher(connection, channel)
    try:
        yield publisher
    finally:
        publisher.end(connection)
        await close_quietly(channel)


async def _until(
    answered: asyncio.Event, ended: "asyncio.Future[ChannelLost]", seconds: float | None
) -> None:
    """Wait for ``answered``, or for this many seconds. Raise if the channel ends first."""
    waiting = asyncio.create_task(answered.wait())
    try:
        await asyncio.wait((waiting, ended), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if not answered.is_set() and ended.done():
        raise ended.result()
