"""Publishing with publisher confirms, by aiormq, and what the broker says to it; knows no requests.

A publisher has a connection of its own, as RabbitMQ's guide to alarms advises: while memory or disk
run out the broker stops reading from connections that publish, and acknowledgements must go on.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from uuid import uuid4

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, DeliveryError

from worker.broker.connection import ChannelLost, lost_with
from worker.broker.properties import join
from worker.broker.publication import Publication, WrittenProperties
from worker.broker.transport import Connection

# Where the broker sets no limit of its own (0), RabbitMQ's default; bytes.
DEFAULT_FRAME_MAX = 131_072


class Fate(Enum):
    """What became of a publication."""

    CONFIRMED = "confirmed"
    RETURNED = "returned"  # basic.return: there is no queue of that name
    REFUSED = "refused"  # basic.nack: its queue is full, or can't write
    GIVEN_UP = "given up"  # by us


class Confirmation:
    """What the broker says of publications that went out together.

    Attributes:
        publications: what went out.
        fates: of each, by its place; None while the broker has said nothing.
        flawless: whether each was confirmed.
        done: once the broker has answered for each; fails when the channel ends before.
    """

    def __init__(self, publications: Sequence[Publication], publisher: "Publisher", first: int) -> None:
        self.publications = publications
        self.fates: list[Fate | None] = [None] * len(publications)
        self.flawless = not publications
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._publisher = publisher
        self._first = first
        self._missing = len(publications)
        self._by_queue: dict[str, list[int]] | None = None
        if not publications:
            self.done.set_result(None)

    def overtaken(self, index: int) -> bool:
        """Whether the broker has answered for a later publication than this one."""
        return self._publisher.latest > self._first + index

    def answer(self, index: int, fate: Fate) -> None:
        """Note what the broker says of a publication; its first word counts (an ack follows a
        return).
        """
        if fate is not Fate.GIVEN_UP:
            self._publisher.latest = max(self._publisher.latest, self._first + index)
        if self.fates[index] is None:
            self.fates[index] = fate
            self._missing -= 1
            if not self._missing and not self.done.done():
                self.flawless = self.fates.count(Fate.CONFIRMED) == len(self.fates)
                self.done.set_result(None)

    def assume_all(self) -> None:
        """Take all for confirmed: nobody will say so."""
        for index in range(len(self.publications)):
            self.answer(index, Fate.CONFIRMED)

    def give_up(self, index: int) -> None:
        """Wait no longer for a publication."""
        if self.fates[index] is None:
            self.answer(index, Fate.GIVEN_UP)
        self.fates[index] = Fate.GIVEN_UP

    def return_to(self, queue: str) -> None:
        """Note that a publication to this queue came back: any without an answer may be it."""
        if self._by_queue is None:
            self._by_queue = defaultdict(list)
            for index, publication in enumerate(self.publications):
                self._by_queue[publication.queue].append(index)
        for index in self._by_queue.pop(queue, ()):
            if self.fates[index] is None:
                self.answer(index, Fate.RETURNED)

    async def wait(self, seconds: float) -> None:
        """Wait until the broker has answered for every publication, or for so many seconds.

        Raises:
            ChannelLost: the channel went away first; what nothing was said of may have been taken.
        """
        await asyncio.wait((self.done,), timeout=seconds)
        if self.done.done():
            self.done.result()


class Publisher:
    """Publishes to queues by their names, on a channel of its own, with publisher confirms.

    Its methods may be called from several tasks; what one call publishes stays in order.

    Attributes:
        latest: the number of the latest publication that the broker has answered for.
        frames: the transport of its connection.
        frame_max: the largest frame in bytes, as agreed with the broker.
    """

    def __init__(self, connection: Connection, channel: AbstractChannel) -> None:
        assert connection.transport is not None
        tune = connection.transport.connection.connection_tune
        self.latest = -1
        self.frames = connection.frames
        self.frame_max = int(tune.frame_max) or DEFAULT_FRAME_MAX
        self._channel = channel
        self._next = 0
        self._unanswered: dict[Confirmation, None] = {}
        self._unwritten: set[asyncio.Future[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost: ChannelLost | None = None
        self.frames.on_return[channel.number or 0] = self._returned
        channel.close_callbacks.add(self._closed)

    async def publish(self, publications: Sequence[Publication]) -> Confirmation:
        """Write publications to the wire; returns what will tell their fate.

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
            await self._write(confirmation)
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

    async def _write(self, confirmation: Confirmation) -> None:
        """By aiormq's ``basic_publish``, which waits for the confirm: so each in its own task."""
        for index, publication in enumerate(confirmation.publications):
            task = asyncio.create_task(self._publish(confirmation, index, publication))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _publish(self, confirmation: Confirmation, index: int, publication: Publication) -> None:
        with suppress(ChannelLost), lost_with(self._channel):  # the channel's end is told to all
            channel = await self._channel.get_underlay_channel()
            try:
                await channel.basic_publish(
                    publication.body,
                    routing_key=publication.queue,
                    properties=WrittenProperties(publication.properties),
                    mandatory=publication.mandatory,
                )
            except DeliveryError:
                confirmation.answer(index, Fate.REFUSED)
            else:
                # One that came back was told before, by its basic.return.
                confirmation.answer(index, Fate.CONFIRMED)

    def _returned(self, queue: str) -> None:
        for confirmation in list(self._unanswered):
            confirmation.return_to(queue)

    async def _closed(self, _: object, error: BaseException | None) -> None:
        self._lost = ChannelLost(error)
        for waiting in (*(each.done for each in self._unanswered), *self._unwritten):
            if not waiting.done():
                waiting.set_exception(self._lost)
                waiting.exception()  # nobody may be waiting any more, which is no error
