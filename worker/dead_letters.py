"""The dead letters: refused requests, kept whole, to be looked at, sent again, or thrown away.

Letters are taken one by one without acknowledgement. The broker puts them back where they were, as
the connection ends. While that lasts nobody else sees them.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity

from worker.broker.connection import close_quietly, connect
from worker.broker.consumer import delivery_of
from worker.broker.delivery import Delivery
from worker.broker.properties import in_order, join, join_table, split, split_table
from worker.broker.publication import (
    APP_ID,
    DELIVERY_MODE_HEADER,
    EVENT_TYPE,
    RAW_PROPERTIES_HEADER,
    Publication,
    events_message,
)
from worker.broker.publisher import Fate, Publisher
from worker.broker.topology import Topology
from worker.broker.transport import Connection
from worker.contract.message import (
    DELIVERY_COUNT_HEADER,
    ERROR_HEADER,
    ERROR_STATUS_HEADER,
    FAILED_AT_HEADER,
    HEADERS_DROPPED_HEADER,
    Message,
    fingerprint,
    is_own_header,
)

# RabbitMQ 4 drops a message that came back to a queue as often as its default delivery limit (20)
# says. A letter that was looked at so often is replaced by a new copy, at the end of the queue,
# whose count begins anew.
LOOKS = 15
# How many letters are removed at once. RabbitMQ hands a quorum queue 32 commands of a channel at a
# time and keeps others back; acknowledgements that it still keeps when the channel closes are lost,
# and letters that were sent again stay as well.
CHUNK = 16
# For the broker's confirm; seconds.
CONFIRM_TIMEOUT = 30.0
# Once the request queue is empty, a worker has refused within this time what it refuses; seconds.
# A guess: many times what a batch takes.
REFUSED_WITHIN = 5.0
# Properties that do not come back: a dead letter has lost its ``expiration``, and RabbitMQ refuses
# a message that names another user in ``user_id``.
_NOT_SENT_AGAIN = frozenset({"expiration", "user_id"})


class DeadLettersFailed(Exception):
    """A letter could not be sent again; it is still where it was. The message says why."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter.

    Attributes:
        incoming: what acknowledges it.
        id: twelve hexadecimal digits, the same at each look; two letters that are the same in
            everything share it.
        status: the HTTP status that was answered; None where the broker gave the request up (the
            delivery limit).
        error: why, in a line.
        failed_at: when, as it was written into the letter.
    """

    delivery: Delivery
    incoming: AbstractIncomingMessage
    id: str
    status: int | None
    error: str
    failed_at: str | None

    @classmethod
    def of(cls, delivery: Delivery, incoming: AbstractIncomingMessage) -> "Letter":
        """Read a letter from how it was delivered."""
        headers = delivery.message.headers
        status = headers.get(ERROR_STATUS_HEADER)
        deaths = headers.get("x-death")
        error, failed_at = headers.get(ERROR_HEADER), headers.get(FAILED_AT_HEADER)
        if error is None and isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
            error = f"given up by the broker: {deaths[0].get('reason', 'unknown')}"
            failed_at = deaths[0].get("time")
        return cls(
            delivery=delivery,
            incoming=incoming,
            id=fingerprint(delivery.message).hex[:12],
            status=status if isinstance(status, int) else None,
            error=str(error or ""),
            failed_at=None if failed_at is None else str(failed_at),
        )

    @property
    def key(self) -> str | None:
        """The request's idempotency key, if its body can be read."""
        try:
            body = orjson.loads(self.delivery.message.body)
        except orjson.JSONDecodeError:
            return None
        key = body.get("idempotency_key") if isinstance(body, dict) else None
        return key if isinstance(key, str) else None

    def matches(self, ids: Iterable[str], status: int | None, error: str | None) -> bool:
        """Whether its id begins with one of these, its status is this one, and its error has this
        text. What is not given always matches.
        """
        wanted = tuple(ids)
        return (
            (not wanted or self.id.startswith(wanted))
            and (status is None or self.status == status)
            and (error is None or error.lower() in self.error.lower())
        )


Match = Callable[[Letter], bool]
Progress = Callable[[int], None]


class DeadLetters:
    """The dead letters of one request queue. Use :func:`open_dead_letters`."""

    def __init__(
        self, connection: Connection, queue: AbstractQueue, publisher: Publisher, topology: Topology
    ) -> None:
        self._connection = connection
        self._queue = queue
        self._publisher = publisher
        self._topology = topology
        self._held: list[Letter] = []
        self._sent: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._renew()
        # The broker puts back what is unacknowledged, in its place, as the connection ends. To
        # reject it would put it at the end.

    async def count(self) -> int:
        """How many there are."""
        declared = await self._queue.channel.get_queue(self._queue.name)
        return declared.declaration_result.message_count or 0

    async def look(self, limit: int) -> AsyncIterator[Letter]:
        """The letters from the oldest on, at most so many; all are put back in the end."""
        for _ in range(min(limit, await self.count())):
            letter = await self._take()
            if letter is None:
                return
            self._held.append(letter)
            yield letter

    async def replay(self, match: Match, progress: Progress = lambda count: None) -> int:
        """Send matching letters to the request queue again, as they were first sent; returns how
        many.

        A letter is removed once the broker has confirmed it in the request queue. An interruption
        between the two leaves it in both queues, and the next replay sends it once more. That makes
        no second run if the request has an idempotency key or a message id. What the dead letter
        had to lose (``expiration``, another user's ``user_id``, ``CC`` and ``BCC``) does not come
        back.

        Raises:
            DeadLettersFailed: the request queue does not stand, or is full; or a letter's
                properties were never readable.
        """
        return await self._remove(match, self._send_again, progress)

    async def purge(self, match: Match, progress: Progress = lambda count: None) -> int:
        """Throw matching letters away; returns how many."""

        async def nothing(_: Letter) -> None:
            return None

        return await self._remove(match, nothing, progress)

    async def _remove(self, match: Match, first: Callable[[Letter], Any], progress: Progress) -> int:
        removed = 0
        chunk: list[Letter] = []
        # As many as there are now. Letters that come in meanwhile stay, such as those that were
        # sent again and are refused again.
        for left in range(await self.count() - 1, -1, -1):
            letter = await self._take()
            if letter is not None and match(letter):
                chunk.append(letter)
            elif letter is not None:
                self._held.append(letter)
            progress(1)
            if chunk and (len(chunk) == CHUNK or not left or letter is None):
                removed += await self._settle(chunk, first)
                chunk = []
            if letter is None:
                break
        return removed

    async def _settle(self, chunk: list[Letter], first: Callable[[Letter], Any]) -> int:
        done = await asyncio.gather(*(first(letter) for letter in chunk), return_exceptions=True)
        for letter, failed in zip(chunk, done, strict=True):
            if failed is None:
                await letter.incoming.ack()
            else:
                self._held.append(letter)
        for failed in done:
            if failed is not None:
                raise failed
        return len(chunk)

    async def _send_again(self, letter: Letter) -> None:
        try:
            publication = self._publication_of(letter.delivery.message)
        except ValueError as error:
            raise DeadLettersFailed(f"{letter.id}: {error}, so it can't be sent again; purge it") from error
        await self._publish(letter, publication)
        self._sent[letter.id] += 1

    async def refused_again(self) -> list[Letter]:
        """Of those that :meth:`replay` sent, the ones that are refused again. Waits until the
        request queue has been empty for ``REFUSED_WITHIN`` seconds.

        Raises:
            DeadLettersFailed: nobody consumes the request queue.
        """
        waiting, refused = Counter(self._sent), []
        until: float | None = None
        while waiting.total():
            letter = await self._take()
            if letter is not None:
                self._held.append(letter)
                if waiting[letter.id]:
                    waiting[letter.id] -= 1
                    refused.append(letter)
                continue
            requests = (await self._queue.channel.get_queue(self._topology.queue)).declaration_result
            if not requests.consumer_count:
                raise DeadLettersFailed(
                    f"Nobody consumes '{self._topology.queue}': what was sent waits there for a worker."
                )
            now = asyncio.get_running_loop().time()
            until = (until or now + REFUSED_WITHIN) if not requests.message_count else None
            if until is not None and now >= until:
                break
            await asyncio.sleep(0.1)
        return refused

    def _publication_of(self, message: Message) -> Publication:
        """A request is for the request queue; an event that Prefect refused, for the outbox."""
        if (message.app_id, message.type) == (APP_ID, EVENT_TYPE):
            return events_message(self._topology.events_queue, [message.body])
        return sent_again(message, self._topology.queue)

    async def _publish(self, letter: Letter, publication: Publication) -> None:
        confirmation = await self._publisher.publish([publication])
        await confirmation.wait(CONFIRM_TIMEOUT)
        if confirmation.fates[0] is Fate.RETURNED:
            raise DeadLettersFailed(f"{letter.id}: the queue '{publication.queue}' does not stand")
        if not confirmation.flawless:
            raise DeadLettersFailed(
                f"{letter.id}: the broker does not take it: is '{publication.queue}' full?"
            )

    async def _take(self) -> Letter | None:
        incoming = await self._queue.get(fail=False)
        if incoming is None:
            return None
        return Letter.of(delivery_of(incoming, self._connection.frames, self._queue.channel), incoming)

    async def _renew(self) -> None:
        """Replace letters that were looked at too often."""
        for letter in self._held:
            if letter.delivery.delivery_count >= LOOKS:
                await self._publish(letter, _counted_anew(letter.delivery.message, self._queue.name))
                await letter.incoming.ack()


def sent_again(message: Message, queue: str) -> Publication:
    """A dead letter as its producer sent it, byte for byte, so that it is the same message.

    ``expiration``, another user's ``user_id``, ``CC`` and ``BCC`` do not come back.

    Raises:
        ValueError: its properties, or its headers, could not be kept.
    """
    if HEADERS_DROPPED_HEADER in message.headers:
        raise ValueError("its headers could not be kept")
    raw = message.headers.get(RAW_PROPERTIES_HEADER)
    try:
        values = split(bytes(raw) if isinstance(raw, bytearray) else message.raw_properties)
    except ValueError as error:
        raise ValueError("its properties could not be kept") from error
    table = values.pop("headers", None)
    own = [(name, value) for name, value in split_table(table or bytes(4)) if is_own_header(name)]
    if own or table == bytes(4):
        values["headers"] = join_table(own)
    mode = message.headers.get(DELIVERY_MODE_HEADER)
    if raw is None and isinstance(mode, bytearray):  # empty: there was none
        values |= {"delivery_mode": bytes(mode)}
    present = {name: value for name, value in values.items() if value and name not in _NOT_SENT_AGAIN}
    return Publication(queue, join(in_order(present)), message.body)


def _counted_anew(message: Message, queue: str) -> Publication:
    """A dead letter as it is, but for the header that counts its deliveries."""
    values = split(message.raw_properties)
    headers = split_table(values["headers"])
    values["headers"] = join_table(each for each in headers if each[0] != DELIVERY_COUNT_HEADER)
    return Publication(queue, join(in_order(values)), message.body)


@asynccontextmanager
async def open_dead_letters(urls: str, topology: Topology) -> AsyncIterator[DeadLetters]:
    """The dead letters of a request queue.

    Raises:
        BrokerUnavailable, BrokerRefused: see :func:`worker.broker.connection.connect`.
        DeadLettersFailed: the queue does not stand.
    """
    connection = await connect(urls, name="flow-run-worker dead-letters", connection_class=Connection)
    try:
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.get_queue(topology.dead_letter_queue)
        publisher = Publisher(connection, await connection.channel())
        async with DeadLetters(connection, queue, publisher, topology) as letters:
            yield letters
    except ChannelNotFoundEntity:
        raise DeadLettersFailed(
            f"The queue '{topology.dead_letter_queue}' does not stand at this broker."
        ) from None
    finally:
        await close_quietly(connection)
