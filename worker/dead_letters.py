"""The dead letters: refused requests, kept whole, to be looked at, sent again, or thrown away.

Letters are taken one by one without acknowledgement and given back in the end; while that lasts
nobody else sees them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp import commands as spec

from worker.broker.channel import BulkChannel
from worker.broker.delivery import Delivery, delivery_of
from worker.broker.publication import (
    ERROR_HEADER,
    ERROR_STATUS_HEADER,
    FAILED_AT_HEADER,
    RAW_PROPERTIES_HEADER,
    Publication,
    writable_headers,
)
from worker.broker.session import connect
from worker.broker.topology import Topology
from worker.contract.message import fingerprint, own_headers

# RabbitMQ 4 drops a message that came back to a queue as often as its default delivery limit (20)
# says. A letter that was looked at so often is put back as a new copy, whose count begins anew.
LOOKS = 10
# How many letters are removed at once. RabbitMQ hands a quorum queue 32 commands of a channel at a
# time and keeps others back; acknowledgements that it still keeps when the channel closes are lost,
# and letters that were sent again stay as well.
CHUNK = 16
# For the broker's confirm; seconds.
CONFIRM_TIMEOUT = 30.0


class DeadLettersFailed(Exception):
    """A letter could not be sent again; it is still where it was. The message says why."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter.

    Attributes:
        id: twelve hexadecimal digits, the same at each look; two letters that are the same in
            everything share it.
        status: the HTTP status that was answered; None where the broker gave the request up (the
            delivery limit).
        error: why, in a line.
        failed_at: when, as it was written into the letter.
    """

    delivery: Delivery
    id: str
    status: int | None
    error: str
    failed_at: str | None

    @classmethod
    def of(cls, delivery: Delivery) -> "Letter":
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
            id=fingerprint(delivery.message).hex[:12],
            status=status if isinstance(status, int) else None,
            error=str(error or ""),
            failed_at=None if failed_at is None else str(failed_at),
        )

    @property
    def key(self) -> str | None:
        """The request's idempotency key, if its body can be read so far."""
        try:
            body = orjson.loads(self.delivery.message.body)
        except orjson.JSONDecodeError:
            return None
        key = body.get("idempotency_key") if isinstance(body, dict) else None
        return key if isinstance(key, str) else None

    def matches(self, ids: Iterable[str], status: int | None, error: str | None) -> bool:
        """Whether it is one of these ids (any, if there are none), of this status, and has this in
        its error.
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

    def __init__(self, channel: AbstractChannel, publisher: BulkChannel, topology: Topology) -> None:
        self._channel = channel
        self._publisher = publisher
        self._topology = topology
        self._held: list[Letter] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._give_back()
        # Else the broker gives back what is unacknowledged, as the connection ends.

    async def count(self) -> int:
        """How many there are."""
        declared = await self._channel.queue_declare(self._topology.dead_letter_queue, passive=True)
        return declared.message_count or 0

    async def look(self, limit: int) -> AsyncIterator[Letter]:
        """The letters from the oldest on, at most so many; all are given back in the end."""
        for _ in range(min(limit, await self.count())):
            letter = await self._take()
            if letter is None:
                return
            self._held.append(letter)
            yield letter

    async def replay(self, match: Match, progress: Progress = lambda count: None) -> int:
        """Send matching letters to the request queue again, as they were first sent; returns how
        many.

        Each leaves the dead letters once the broker has confirmed it in the request queue. If that
        is interrupted in
        between it is in both, and sent once more by the next replay: creation is idempotent for a
        request with an idempotency key or a message id. What was given up in the copy
        (``expiration``, another user's ``user_id``, ``CC`` and ``BCC``) does not come back.

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
        # Those that come in meanwhile, as what was sent again is refused again, are not for this
        # time.
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
                await self._channel.basic_ack(letter.delivery.tag)
            else:
                self._held.append(letter)
        for failed in done:
            if failed is not None:
                await self._give_back()
                raise failed
        return len(chunk)

    async def _send_again(self, letter: Letter) -> None:
        message = letter.delivery.message
        if RAW_PROPERTIES_HEADER in message.headers or message.undecodable:
            raise DeadLettersFailed(
                f"{letter.id}: its properties can't be read, so it can't be sent again; purge it"
            )
        headers, lost = writable_headers(own_headers(message.headers))
        if lost:
            raise DeadLettersFailed(
                f"{letter.id}: its headers {', '.join(lost)} can't be written again; purge it"
            )
        await self._publish(letter, self._topology.queue, headers)

    async def _publish(self, letter: Letter, queue: str, headers: dict[str, Any]) -> None:
        """By the worker's own channel: aiormq's gives a message id to a message that has none,
        which makes it another one.
        """
        message = letter.delivery.message
        publication = Publication(
            queue=queue,
            properties=spec.Basic.Properties(
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                headers=headers,
                delivery_mode=message.delivery_mode,
                priority=message.priority,
                correlation_id=message.correlation_id,
                reply_to=message.reply_to,
                message_id=message.message_id,
                timestamp=message.timestamp,
                message_type=message.type,
                app_id=message.app_id,
            ),
            body=message.body,
            numbered=False,
        )
        confirmation = await self._publisher.publish([publication])
        await confirmation.wait(CONFIRM_TIMEOUT)
        if confirmation.returned:
            raise DeadLettersFailed(f"{letter.id}: the queue '{queue}' does not stand")
        if confirmation.refused or confirmation.outstanding:
            raise DeadLettersFailed(f"{letter.id}: the broker does not take it: is '{queue}' full?")

    async def _take(self) -> Letter | None:
        taken = await self._channel.basic_get(self._topology.dead_letter_queue)
        if taken.delivery_tag is None:
            return None
        redelivered, properties = bool(taken.redelivered), taken.header.properties
        return Letter.of(
            delivery_of(taken.delivery_tag, redelivered=redelivered, properties=properties, body=taken.body)
        )

    async def _give_back(self) -> None:
        held, self._held = self._held, []
        for letter in held:
            delivery = letter.delivery
            kept, lost = writable_headers(delivery.message.headers)
            if delivery.delivery_count < LOOKS or delivery.message.undecodable or lost:
                await self._channel.basic_nack(delivery.tag, requeue=True)
            else:
                kept.pop("x-delivery-count", None)
                await self._publish(letter, self._topology.dead_letter_queue, kept)
                await self._channel.basic_ack(delivery.tag)


@asynccontextmanager
async def open_dead_letters(url: str, topology: Topology) -> AsyncIterator[DeadLetters]:
    """The dead letters of a request queue.

    Raises:
        BrokerUnavailable, BrokerRefused: see :func:`worker.broker.session.connect`.
        DeadLettersFailed: the queue does not stand.
    """
    connection = await connect(url, name="flow-run-worker dead-letters")
    try:
        channel = await connection.channel()
        async with DeadLetters(channel, await BulkChannel.open_on(connection), topology) as letters:
            yield letters
    except ChannelNotFoundEntity:
        raise DeadLettersFailed(
            f"The queue '{topology.dead_letter_queue}' does not stand at this broker."
        ) from None
    finally:
        await connection.close()
