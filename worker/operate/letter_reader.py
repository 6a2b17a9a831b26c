"""Takes the messages of a queue one by one without acknowledging them, and skips those that the
broker can't deliver. Knows no dead letters.

RabbitMQ 3 accepts an AMQP 1.0 message whose correlation id or message id is no text. Delivering it
by AMQP 0-9-1 ends the connection with ``INTERNAL_ERROR``, and all messages of that connection
return to the queue. A second connection, from which nothing is read, can hold such a message:
returned publications fill its socket, so the broker never writes the delivery. The next messages
are taken as usual. The held message can be acknowledged: its delivery tag is known, as each channel
counts its own.

The holding connection has to know that the next message is the one to hold. RabbitMQ hands out
returned messages first, in the order of their return, then new ones. So:

- After a failure the messages of the failed connection return together, followed by the failing
  message. They are taken again, and their connection then takes no more. Later failures do not
  affect such a segment.
- A connection that fails at its first message failed because of the queue's next message. That
  message is next again if nothing else has returned. A message that was never delivered before
  proves that. Until one comes, as many failures in a row are needed as there can be messages.
"""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import aiormq
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aiormq.abc import ChannelFrame
from aiormq.exceptions import ChannelAccessRefused
from pamqp.commands import Basic
from pamqp.commands import Queue as QueueCommands

from worker.amqp.transport import Connection
from worker.broker.connection import ChannelLost, close_quietly, connect, lost_with
from worker.broker.incoming import delivery_of
from worker.contract.delivery import Delivery
from worker.contract.message import fingerprint

NAME = "flow-run-worker dead-letters"
# The broker's error for its own failure (code 541).
_FAILED = "INTERNAL_ERROR"
# Bytes that fill the socket of the holding connection. By default Linux buffers at most 4 MiB.
_FILLING, _FILLING_PART = 16 * 1024 * 1024, 512 * 1024
# Wait this many seconds for the broker to return messages or run commands. It takes milliseconds.
_PATIENCE = 10.0
# After this many failures in a row the next message counts as undeliverable. A guess: a killed
# command leaves fewer of them in front of a good message.
_FAILURES = 20
# Wait this many seconds if the user may declare no queue for answers.
_UNTOLD = 1.0


OTHERS = "Somebody else takes dead letters at the same time: try again."


class ReadingFailed(Exception):
    """The queue can't be read any further. The message has the reason."""


@dataclass(eq=False)
class Taken:
    """A taken message.

    Attributes:
        settled: whether it was acknowledged.
    """

    delivery: Delivery
    incoming: AbstractIncomingMessage | None
    settled: bool = False

    @property
    def identity(self) -> UUID:
        """Deliveries of one message have the same identity."""
        return fingerprint(self.delivery.message)

    async def acknowledge(self) -> None:
        """Remove it from its queue.

        Raises:
            ReadingFailed: another consumer has it.
        """
        if self.incoming is None:
            raise ReadingFailed(OTHERS)
        await self.incoming.ack()
        self.settled = True


@dataclass(frozen=True)
class Undeliverable:
    """A message that the broker can't deliver.

    Attributes:
        place: its place in the queue, from 1 for the oldest.
        tag: its delivery tag at the holding connection.
    """

    place: int
    tag: int


@dataclass(eq=False)
class _Segment:
    """The messages taken on one connection.

    Attributes:
        ready: the number of ready messages at its start.
    """

    connection: Connection
    channel: AbstractChannel
    queue: AbstractQueue
    ready: int
    taken: list[Taken] = field(default_factory=list)


@dataclass(frozen=True)
class _Returned:
    """A message that returned to the queue when its segment failed."""

    identity: UUID
    taken: Taken
    segment: _Segment


class LetterReader:
    """Takes the messages of one queue.

    Args:
        urls: the broker's URLs, for :func:`worker.broker.connection.connect`.
        name: the queue's name.
        watching: another connection, to count the ready messages.
    """

    def __init__(self, urls: str, name: str, watching: Connection) -> None:
        self._urls = urls
        self._name = name
        self._watching = watching
        self._watch: AbstractChannel | None = None
        self._segment: _Segment | None = None
        self._before: list[_Segment] = []
        self._returned: list[_Returned] = []
        self._ahead: deque[Taken] = deque()
        self._failures = 0  # in a row, each at the first message of its connection
        self._met_new = False  # a message came that was never delivered before
        self._place = 0
        self._holder: _Holder | None = None

    async def count(self) -> int:
        """The number of ready messages."""
        return (await self.look_at(self._name)).message_count or 0

    async def look_at(self, name: str) -> QueueCommands.DeclareOk:
        """A queue's numbers of messages and consumers."""
        if self._watch is None or self._watch.is_closed:
            self._watch = await self._watching.channel()
        return (await self._watch.get_queue(name)).declaration_result

    async def take(self) -> Taken | Undeliverable | None:
        """The next message. None at the end of the queue.

        Raises:
            ChannelLost: the connection ended, and no message is the cause.
            ReadingFailed: an undeliverable message can't be skipped.
        """
        while True:
            # Not while messages are returned: they can't be acknowledged.
            if self._ahead and not self._returned:
                self._place += 1
                return self._ahead.popleft()
            if self._segment is None:
                self._segment = await self._open()
            segment = self._segment
            try:
                taken = await self._get(segment)
            except ChannelLost:
                if not (segment.connection.frames.closed or "").startswith(_FAILED):
                    raise
                await self._note_failure(segment)
                if segment.taken or self._returned or not await self._fails_again():
                    continue
                self._place += 1
                return Undeliverable(self._place, await self._hold())
            if taken is None:
                self._forget_returned()
                if not self._ahead:
                    return None
                continue
            self._failures = 0
            self._met_new = self._met_new or not taken.delivery.message.redelivered
            if not self._is_back(taken, segment):
                segment.taken.append(taken)
                self._ahead.append(taken)

    async def acknowledge(self, message: Undeliverable) -> None:
        """Remove an undeliverable message from the queue."""
        assert self._holder is not None
        await self._holder.acknowledge(message.tag)

    async def close(self) -> None:
        """Return all unacknowledged messages. The connections close one after the other, so that
        messages return in their order, followed by the undeliverable ones.
        """
        for segment in (*self._before, self._segment):
            if segment is not None:
                await close_quietly(segment.connection)
        if self._holder is not None:
            await self._holder.close()

    async def _open(self) -> _Segment:
        connection = await connect(self._urls, name=NAME, connection_class=Connection)
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.get_queue(self._name)
        return _Segment(connection, channel, queue, queue.declaration_result.message_count or 0)

    async def _get(self, segment: _Segment) -> Taken | None:
        with lost_with(segment.channel):
            incoming = await segment.queue.get(fail=False)
        if incoming is None:
            return None
        delivery = delivery_of(segment.connection, segment.channel, incoming)
        return Taken(delivery, incoming)

    async def _note_failure(self, failed: _Segment) -> None:
        """Note that a segment's connection has failed, and wait until its messages are back."""
        await close_quietly(failed.connection)
        self._segment = None
        self._failures = 0 if failed.taken else self._failures + 1
        self._returned += [
            _Returned(each.identity, each, failed) for each in failed.taken if not each.settled
        ]
        expected = failed.ready - sum(taken.settled for taken in failed.taken)
        with suppress(TimeoutError):  # other consumers may have taken some
            async with asyncio.timeout(_PATIENCE):
                while await self.count() < expected:
                    await asyncio.sleep(0.01)

    async def _fails_again(self) -> bool:
        """Whether the next message is known to be undeliverable."""
        return self._met_new or self._failures >= min(await self.count(), _FAILURES)

    def _is_back(self, taken: Taken, segment: _Segment) -> bool:
        """Whether the message was taken before a failure. If so, it continues as the same
        ``Taken``.
        """
        if not self._returned:
            return False
        identity = taken.identity
        returned = next((each for each in self._returned if each.identity == identity), None)
        if returned is None:
            return False
        self._returned.remove(returned)
        returned.taken.incoming = taken.incoming
        segment.taken.append(returned.taken)
        if not any(each.segment is returned.segment for each in self._returned):
            self._before.append(segment)
            self._segment = None
        return True

    def _forget_returned(self) -> None:
        for each in self._returned:
            each.taken.incoming = None  # another consumer has it
        self._returned = []

    async def _hold(self) -> int:
        if self._holder is None:
            self._holder = await _Holder.open(self._urls, self._name, self._watching)
        return await self._holder.take()


class _Holder:
    """A connection that takes undeliverable messages and never reads them."""

    def __init__(self, connection: Connection, channel: aiormq.Channel, name: str) -> None:
        self._connection = connection
        self._channel = channel
        self._name = name
        self._tag = 0
        # A message to this queue arrives after all commands written before it. None: the user may
        # not declare a queue.
        self._answers: AbstractQueue | None = None

    @classmethod
    async def open(cls, urls: str, name: str, watching: Connection) -> "_Holder":
        connection = await connect(urls, name=f"{NAME} holding", connection_class=Connection)
        channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
        assert isinstance(channel, aiormq.Channel)  # always; the abstract class lacks "wait"
        holder = cls(connection, channel, name)
        with suppress(ChannelAccessRefused):
            answering = await watching.channel()
            answers = await answering.declare_queue(exclusive=True)
            await answers.get(fail=False, no_ack=True)  # the user may have no right to read it
            holder._answers = answers
        connection.frames.pause_reading()
        part = bytes(_FILLING_PART)
        for _ in range(_FILLING // _FILLING_PART):
            # It is returned, as no queue has this name.
            await channel.basic_publish(part, routing_key=f"{name} nowhere", mandatory=True, wait=False)
        return holder

    async def take(self) -> int:
        """Take the next message. Returns its delivery tag, which the broker counts by channel."""
        get = Basic.Get(queue=self._name, no_ack=False)
        frame = ChannelFrame.marshall(channel_number=self._channel.number, frames=[get])
        await self._channel.write_queue.put(frame)  # as the fast path does
        await self._until_done()
        self._tag += 1
        return self._tag

    async def acknowledge(self, tag: int) -> None:
        """Remove a held message from the queue."""
        await self._channel.basic_ack(tag)
        await self._until_done()

    async def close(self) -> None:
        """Close without a handshake: the broker's answer would not be read."""
        self._connection.frames.abort()
        await close_quietly(self._connection)

    async def _until_done(self) -> None:
        """Wait until the broker has run all commands written so far."""
        if self._answers is None:
            await asyncio.sleep(_UNTOLD)
            return
        await self._channel.basic_publish(b"", routing_key=self._answers.name, wait=False)
        try:
            async with asyncio.timeout(_PATIENCE):
                while await self._answers.get(fail=False, no_ack=True) is None:
                    await asyncio.sleep(0.005)
        except TimeoutError as error:
            raise ReadingFailed(
                "A dead letter that the broker can't deliver can't be held back: the broker takes nothing "
                "from this connection (is there an alarm?)"
            ) from error
