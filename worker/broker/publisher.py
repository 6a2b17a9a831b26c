"""Publishing with publisher confirms, and what the broker says of what goes out together; knows no
requests.

A publisher has a connection of its own, as RabbitMQ's guide to alarms advises: while memory or disk
run out the broker stops reading from connections that publish, and acknowledgements must go on.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from uuid import uuid4

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from worker.amqp import plain
from worker.amqp.properties import join
from worker.amqp.publication import Confirm, Outgoing, Publication
from worker.amqp.transport import Connection
from worker.amqp.writing import Writer
from worker.broker.connection import ChannelLost


class Confirmation:
    """What the broker says of publications that went out together.

    Attributes:
        publications: what went out.
        confirms: of each, by its place; None while the broker has said nothing.
        given_up: the places of those that are waited for no more.
        all_taken: whether the broker has taken each.
        done: once the broker has answered for each; fails when the channel ends before.
    """

    def __init__(self, publications: Sequence[Publication], publisher: "Publisher", first: int) -> None:
        self.publications = publications
        self.confirms: list[Confirm | None] = [None] * len(publications)
        self.given_up: set[int] = set()
        self.all_taken = not publications
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._publisher = publisher
        self._first = first
        self._missing = len(publications)
        if not publications:
            self.done.set_result(None)

    def overtaken(self, index: int) -> bool:
        """Whether the broker has answered for a later publication than this one."""
        return self._publisher.latest > self._first + index

    def confirm(self, index: int, confirm: Confirm) -> None:
        """Note what the broker says of a publication, once for each."""
        self._publisher.latest = max(self._publisher.latest, self._first + index)
        self.confirms[index] = confirm
        if index not in self.given_up:
            self._count()

    def give_up(self, index: int) -> None:
        """Wait no longer for a publication."""
        if index not in self.given_up:
            self.given_up.add(index)
            if self.confirms[index] is None:
                self._count()

    async def wait(self, seconds: float) -> None:
        """Wait until the broker has answered for every publication, or for so many seconds.

        Raises:
            ChannelLost: the channel went away first; what nothing was said of may have been taken.
        """
        await asyncio.wait((self.done,), timeout=seconds)
        if self.done.done():
            self.done.result()

    def _count(self) -> None:
        self._missing -= 1
        if not self._missing and not self.done.done():
            self.all_taken = self.confirms.count(Confirm.ACK) == len(self.confirms)
            self.done.set_result(None)


class Publisher:
    """Publishes to queues by their names, on a channel of its own, with publisher confirms.

    Its methods may be called from several tasks; what one call publishes stays in order.

    Args:
        connection: the channel's.
        channel: nobody else publishes on it.
        bulk: write past aio-pika; see :mod:`worker.amqp`.

    Attributes:
        latest: the number of the latest publication that the broker has answered for.
        frames: the transport of its connection.
        frame_max: the largest frame in bytes, as agreed with the broker.
    """

    def __init__(self, connection: Connection, channel: AbstractChannel, *, bulk: bool = False) -> None:
        self.latest = -1
        self.frames = connection.frames
        self.frame_max = connection.frame_max
        self._writer = (Writer if bulk else plain.Writer)(connection, channel)
        self._channel = channel
        self._next = 0
        self._unanswered: dict[Confirmation, None] = {}
        self._lost: ChannelLost | None = None
        channel.close_callbacks.add(self._closed)

    async def publish(self, publications: Sequence[Publication]) -> Confirmation:
        """Write publications to the wire; returns what will tell what the broker says of them.

        Waits while the broker blocks publishers, and while the socket is full.

        Raises:
            ChannelLost: the channel is gone.
            ValueError: a publication can't be written in AMQP.
        """
        await self.frames.unblocked.wait()
        if self._lost is not None:
            raise self._lost
        for publication in publications:
            publication.check(self.frame_max)
        confirmation = Confirmation(publications, self, self._next)
        self._next += len(publications)
        self._unanswered[confirmation] = None
        confirmation.done.add_done_callback(lambda _: self._unanswered.pop(confirmation, None))
        try:
            await self._writer.write(
                [
                    Outgoing(publication, partial(confirmation.confirm, index))
                    for index, publication in enumerate(publications)
                ]
            )
        except CONNECTION_EXCEPTIONS as error:
            raise self._lost or ChannelLost(error) from error
        return confirmation

    @property
    def lost(self) -> bool:
        """Whether its channel has ended."""
        return self._lost is not None or self._channel.is_closed

    async def try_out(self, size: int = 0) -> None:
        """Publish a message to a queue that does not stand: the broker sends it back, or refuses.

        Args:
            size: of its body, in bytes.

        Raises:
            ChannelLost: it does not let us publish.
        """
        confirmation = await self.publish([Publication(f"no-queue-{uuid4()}", join({}), bytes(size))])
        await confirmation.done

    async def _closed(self, _: object, error: BaseException | None) -> None:
        self._lost = ChannelLost(error)
        for each in list(self._unanswered):
            if not each.done.done():
                each.done.set_exception(self._lost)
                each.done.exception()  # nobody may be waiting any more, which is no error
