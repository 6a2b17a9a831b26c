"""Takes the messages of a queue in their order without acknowledging them, and skips those that the
broker can't deliver. Knows no dead letters.

RabbitMQ 3 accepts an AMQP 1.0 message whose correlation id or message id is no text. Delivering it
by AMQP 0-9-1 ends the connection with ``INTERNAL_ERROR``, and all messages of that connection
return to the queue. A second connection, from which nothing is read, can hold such a message:
returned publications fill its socket, so the broker never writes the delivery. The next messages
are taken as usual. The held message can be acknowledged: its delivery tag is known, as each channel
counts its own.

The holding connection has to know that the next message is the one to hold. So the reader follows
the order of the queue. A consumer's messages return together, in their order, behind all that
returned before and in front of the new ones. (Those of ``basic.get`` return in any order: each has
a consumer of its own.) That gives these steps:

- First all messages are streamed, and so all return if their connection fails. Those that arrived
  are good. They are streamed once more, exactly as many, on a connection that takes no more: later
  failures do not affect it.
- The next message alone is streamed. If that fails, it is undeliverable, and now the last in the
  queue. If not, the next two are, then four, and so on: the connection may have ended before all
  messages in front of the undeliverable one had arrived.
- The messages behind it are streamed again. When an undeliverable one is the first, it is held.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

from aio_pika.abc import AbstractChannel, AbstractQueue
from pamqp.commands import Queue as QueueCommands

from worker.amqp.transport import Connection
from worker.broker.connection import ChannelLost, close_quietly, connect, lost_with
from worker.broker.incoming import delivery_of
from worker.contract.delivery import Delivery
from worker.contract.message import fingerprint
from worker.operate.letter_holder import NAME, Holder, ReadingFailed
from worker.operate.letter_stream import MOST, Stream

# The broker's error for its own failure (code 541).
_FAILED = "INTERNAL_ERROR"
# Wait this many seconds for the broker to return messages. It takes milliseconds.
_PATIENCE = 10.0

OTHERS = "Somebody else takes dead letters at the same time: try again."
_TOO_MANY = (
    f"The broker can't deliver one of the dead letters, which can't be skipped among more than {MOST:,}."
)


@dataclass(eq=False, slots=True)
class Taken:
    """A taken message, without its content: all messages of a queue may be taken at once.

    Attributes:
        identity: deliveries of one message have the same identity.
        tag: its delivery tag.
        segment: where it was taken.
    """

    identity: UUID
    tag: int
    segment: "_Segment"

    async def acknowledge(self) -> None:
        """Remove it from its queue.

        Raises:
            ChannelLost: the connection ended.
        """
        channel = self.segment.channel
        with lost_with(channel):
            await (await channel.get_underlay_channel()).basic_ack(self.tag)


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
        run: of the messages that are streamed.
        stream: takes them. None: it takes what arrives later, one by one.
    """

    connection: Connection
    channel: AbstractChannel
    queue: AbstractQueue
    run: "_Unknown"
    stream: Stream | None
    taken: list[Taken] = field(default_factory=list)


@dataclass(frozen=True)
class _Good:
    """Messages that returned and can be delivered."""

    taken: Sequence[Taken]


@dataclass(frozen=True)
class _Unknown:
    """Messages that returned and never arrived, or are new.

    Attributes:
        at_once: how many of them to stream next.
        doubt: one of the first may be undeliverable.
    """

    places: range
    at_once: int = MOST
    doubt: bool = False


@dataclass(frozen=True)
class _Bad:
    """An undeliverable message."""

    place: int


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
        # The messages that returned after a failure, in the queue's order.
        self._returned: deque[_Good | _Unknown | _Bad] = deque()
        self._new: _Unknown | None = None
        self._order_known = True  # all messages would return
        self._holder: Holder | None = None

    async def count(self) -> int:
        """The number of ready messages."""
        return (await self.look_at(self._name)).message_count or 0

    async def look_at(self, name: str) -> QueueCommands.DeclareOk:
        """A queue's numbers of messages and consumers."""
        if self._watch is None or self._watch.is_closed:
            self._watch = await self._watching.channel()
        return (await self._watch.get_queue(name)).declaration_result

    async def begin(self) -> int:
        """The number of messages to take first, all that are there now. Acknowledge none of them
        before :meth:`end`. Call it once.
        """
        count = await self.count()
        self._new = _Unknown(range(1, count + 1)) if count else None
        self._order_known = count <= MOST
        return count

    async def take(self) -> tuple[Taken, Delivery] | Undeliverable | None:
        """The next message, with its content. None at the end of the queue.

        Raises:
            ChannelLost: the connection ended, and no message is the cause.
            ReadingFailed: an undeliverable message can't be skipped.
        """
        while True:
            if self._segment is None:
                if isinstance(run := await self._next_run(), _Bad):
                    return Undeliverable(run.place, await self._hold())
                self._segment = await self._open(run)
            segment = self._segment
            try:
                delivery = await self._get(segment)
            except ChannelLost:
                failed = (segment.connection.frames.closed or "").startswith(_FAILED)
                if not failed or segment.stream is None:
                    raise
                await self._note_failure(segment)
                continue
            if delivery is not None:
                taken = Taken(fingerprint(delivery.message), delivery.tag, segment)
                segment.taken.append(taken)
                return taken, delivery
            if segment.stream is None:
                return None
            self._leave(segment)

    async def end(self) -> None:
        """End the first messages: from now on each that was taken can be acknowledged."""
        if (segment := self._segment) is not None and segment.stream is not None:
            await segment.stream.cancel()
            self._leave(segment)
        while self._returned and isinstance(run := self._returned[0], _Good):
            self._returned.popleft()
            await self._take_again(run)

    async def until_acknowledged(self, acknowledged: Iterable[Taken]) -> list[tuple[Taken, Delivery]]:
        """Wait until the queue has run these acknowledgements: it answers a get on their channel
        after them. Returns what the gets took, which arrived meanwhile.

        Raises:
            ChannelLost: the connection ended.
        """
        found: list[tuple[Taken, Delivery]] = []
        for segment in {each.segment for each in acknowledged}:
            if (delivery := await self._get_one(segment)) is not None:
                found.append((Taken(fingerprint(delivery.message), delivery.tag, segment), delivery))
        return found

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

    async def _next_run(self) -> _Unknown | _Bad | None:
        """The next messages. None: those that are new in the queue."""
        while self._returned:
            run = self._returned.popleft()
            if isinstance(run, _Good):
                await self._take_again(run)
            elif isinstance(run, _Bad) or run.places:
                return run
        new, self._new = self._new, None
        return new

    async def _open(self, run: _Unknown | None) -> _Segment:
        connection = await connect(self._urls, name=NAME, connection_class=Connection)
        try:
            channel = await connection.channel(publisher_confirms=False)
            queue = await channel.get_queue(self._name)
        except BaseException:
            await close_quietly(connection)
            raise
        count = 0 if run is None else min(len(run.places), run.at_once)
        stream = Stream(connection, channel, queue, count) if count else None
        return _Segment(connection, channel, queue, run or _Unknown(range(0)), stream)

    async def _get(self, segment: _Segment) -> Delivery | None:
        if segment.stream is not None:
            return await segment.stream.take()
        return await self._get_one(segment)

    @staticmethod
    async def _get_one(segment: _Segment) -> Delivery | None:
        with lost_with(segment.channel):
            incoming = await segment.queue.get(fail=False)
        return None if incoming is None else delivery_of(segment.connection, segment.channel, incoming)

    def _leave(self, segment: _Segment) -> None:
        """Take no more on a segment's connection."""
        self._before.append(segment)
        self._segment = None
        run = segment.run
        if rest := run.places[run.at_once :]:
            more = 2 * run.at_once if run.doubt else run.at_once
            self._returned.appendleft(_Unknown(rest, min(more, MOST), run.doubt))

    async def _note_failure(self, failed: _Segment) -> None:
        """Note in which order the messages of a connection return, and wait until they are back."""
        await close_quietly(failed.connection)
        if not self._order_known:
            raise ReadingFailed(_TOO_MANY)
        self._segment = None
        run, count = failed.run, len(failed.taken)
        streamed, rest = run.places[: run.at_once], run.places[run.at_once :]
        if len(streamed) == 1 and not count:
            self._returned.appendleft(_Unknown(rest))
            self._returned.append(_Bad(streamed[0]))
        else:
            self._returned.appendleft(_Unknown(rest, run.at_once, run.doubt))
            self._returned += (_Good(failed.taken), _Unknown(streamed[count:], 1, doubt=True))
        expected = sum(map(_size, self._returned))
        with suppress(TimeoutError):  # other consumers may have taken some
            async with asyncio.timeout(_PATIENCE):
                while await self.count() < expected:
                    await asyncio.sleep(0.01)

    async def _take_again(self, run: _Good) -> None:
        """Take messages that returned, on a connection that takes no more."""
        if not run.taken:
            return
        segment = await self._open(_Unknown(range(len(run.taken))))
        assert segment.stream is not None
        self._before.append(segment)
        for each in run.taken:
            delivery = await segment.stream.take()
            if delivery is None or fingerprint(delivery.message) != each.identity:
                raise ReadingFailed(OTHERS)
            each.tag, each.segment = delivery.tag, segment
        await segment.stream.cancel()

    async def _hold(self) -> int:
        if self._holder is None:
            self._holder = await Holder.open(self._urls, self._name, self._watching)
        return await self._holder.take()


def _size(run: _Good | _Unknown | _Bad) -> int:
    if isinstance(run, _Bad):
        return 1
    return len(run.taken if isinstance(run, _Good) else run.places)
