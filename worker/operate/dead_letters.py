"""The dead letters: refused requests, kept whole, to look at, replay or purge.

Letters are taken one by one without acknowledgement. When the connection ends, the broker puts them
back in their places. Until then no other consumer sees them. Letters that the broker can't deliver
are skipped.
"""

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from aio_pika.exceptions import ChannelNotFoundEntity

from worker.amqp.properties import in_order, join, join_table, split, split_table
from worker.amqp.publication import Confirm, Publication
from worker.amqp.transport import Connection
from worker.broker.connection import close_quietly, connect, unless_blocked
from worker.broker.login import login_of
from worker.broker.messages import (
    APP_ID,
    DELIVERY_MODE_HEADER,
    EVENT_TYPE,
    RAW_PROPERTIES_HEADER,
    USER_HEADER,
    events_message,
)
from worker.broker.publisher import Confirmation, Publisher
from worker.contract.message import DELIVERY_COUNT_HEADER, HEADERS_DROPPED_HEADER, Message, is_own_header
from worker.contract.topology import QueueNames
from worker.operate.letter import Letter
from worker.operate.letter_reader import NAME, LetterReader, Undeliverable

# RabbitMQ 4 drops a message at its default delivery limit (20 returns to the queue). After this
# many returns a copy at the end of the queue replaces a letter, with a new count.
LOOKS = 15
# Letters to remove at once. RabbitMQ sends a quorum queue 32 commands of a channel at a time and
# delays the others. Acknowledgements that are delayed when the channel closes are lost, and their
# replayed letters stay in this queue as well.
CHUNK = 16
# Longest wait for the broker's confirm, in seconds.
CONFIRM_TIMEOUT = 30.0
# Once the request queue is empty, a worker refuses bad requests within this time, in seconds. A
# guess: many times the time of a batch.
REFUSED_WITHIN = 5.0
# Properties that a replay leaves out: a dead letter has lost its ``expiration``, and RabbitMQ
# refuses another user's ``user_id``.
_NOT_SENT_AGAIN = frozenset({"expiration", "user_id"})


class DeadLettersFailed(Exception):
    """A letter could not be replayed, and is still there. The message has the reason."""


class UnknownIds(DeadLettersFailed):
    """No letter has these ids. Nothing was done.

    Attributes:
        ids: the unknown ids.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(f"no dead letter has the id {', '.join(ids)}; nothing was done")
        self.ids = ids


Match = Callable[[Letter], bool]
Progress = Callable[[int], None]


class DeadLetters:
    """The dead letters of one request queue. Use :func:`open_dead_letters`.

    Attributes:
        undeliverable: the letters met so far that the broker can't deliver.
    """

    def __init__(
        self,
        connection: Connection,
        reader: LetterReader,
        publisher: Publisher,
        names: QueueNames,
        fleet_logins: Collection[str],
    ) -> None:
        self._fleet_logins = fleet_logins
        self._connection = connection
        self._reader = reader
        self._publisher = publisher
        self._names = names
        self._held: list[Letter] = []
        self._sent: Counter[str] = Counter()
        self.undeliverable: list[Undeliverable] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            await self._renew()
        # When the connection ends, the broker puts unacknowledged letters back in their places.
        # Rejected ones would go to the end of the queue.

    async def count(self) -> int:
        """The number of letters."""
        return await self._reader.count()

    async def look(self, limit: int) -> AsyncIterator[Letter]:
        """The oldest letters, up to a limit. All are put back in the end."""
        for _ in range(min(limit, await self.count())):
            taken = await self._take()
            if taken is None:
                return
            if isinstance(taken, Letter):
                self._held.append(taken)
                yield taken

    async def replay(
        self, match: Match, progress: Progress = lambda count: None, *, ids: Sequence[str] = ()
    ) -> int:
        """Send matching letters to the request queue, as first sent. Returns their number.

        A letter is removed once the broker has confirmed it in the request queue. An interruption
        between the two leaves it in both queues, and the next replay sends it once more. That makes
        no second run if the request has an idempotency key or a message id. Properties that the
        dead letter lost (``expiration``, another user's ``user_id``, ``CC`` and ``BCC``) are not
        restored.

        Args:
            ids: each of them must be a letter's.

        Raises:
            UnknownIds: an id is no letter's. Nothing was done.
            DeadLettersFailed: the request queue is missing or full, or a letter's properties were
                never readable.
            PublishersBlocked: the broker has an alarm.
        """
        return await self._remove(match, self._send_again, progress, ids)

    async def purge(
        self,
        match: Match,
        progress: Progress = lambda count: None,
        *,
        ids: Sequence[str] = (),
        undeliverable: bool = False,
    ) -> int:
        """Delete matching letters. Returns their number.

        Args:
            ids: each of them must be a letter's.
            undeliverable: delete the letters that the broker can't deliver, too.

        Raises:
            UnknownIds: an id is no letter's. Nothing was done.
        """

        async def nothing(_: Letter) -> None:
            return None

        removed = await self._remove(match, nothing, progress, ids)
        for each in self.undeliverable if undeliverable else ():
            await self._reader.acknowledge(each)
            removed += 1
        return removed

    async def _remove(
        self, match: Match, first: Callable[[Letter], Any], progress: Progress, ids: Sequence[str]
    ) -> int:
        removed = 0
        chunk: list[Letter] = []
        # Only as many as there are now: letters that arrive meanwhile stay, such as replayed ones
        # that were refused again.
        for _ in range(await self.count()):
            taken = await self._take()
            progress(1)
            if taken is None:
                break
            if not isinstance(taken, Letter):
                continue
            if not match(taken):
                self._held.append(taken)
                continue
            chunk.append(taken)
            # With ids, find all of them before anything is done.
            if len(chunk) >= CHUNK and not ids:
                removed += await self._settle(chunk, first)
                chunk = []
        self.raise_for_unknown(ids, [*self._held, *chunk])
        for start in range(0, len(chunk), CHUNK):
            removed += await self._settle(chunk[start : start + CHUNK], first)
        return removed

    @staticmethod
    def raise_for_unknown(ids: Sequence[str], letters: Iterable[Letter]) -> None:
        """Raise :class:`UnknownIds` unless each id begins a letter's id."""
        theirs = [letter.id for letter in letters]
        if unknown := [each for each in ids if not any(known.startswith(each) for known in theirs)]:
            raise UnknownIds(unknown)

    async def _settle(self, chunk: list[Letter], first: Callable[[Letter], Any]) -> int:
        done = await asyncio.gather(*(first(letter) for letter in chunk), return_exceptions=True)
        for letter, failed in zip(chunk, done, strict=True):
            if failed is None:
                await letter.taken.acknowledge()
            else:
                self._held.append(letter)
        for failed in done:
            if failed is not None:
                raise failed
        return len(chunk)

    async def _send_again(self, letter: Letter) -> None:
        try:
            publication = await self._publication_of(letter.delivery.message)
        except ValueError as error:
            raise DeadLettersFailed(f"{letter.id}: {error}, so it can't be sent again; purge it") from error
        await self._publish(letter, publication)
        self._sent[letter.id] += 1

    async def refused_again(self) -> list[Letter]:
        """The replayed letters that were refused again. Waits until the request queue has been
        empty for ``REFUSED_WITHIN`` seconds.

        Raises:
            DeadLettersFailed: the request queue has no consumer.
        """
        waiting, refused = Counter(self._sent), []
        until: float | None = None
        while waiting.total():
            letter = await self._take()
            if isinstance(letter, Letter):
                self._held.append(letter)
                if waiting[letter.id]:
                    waiting[letter.id] -= 1
                    refused.append(letter)
            if letter is not None:
                continue
            requests = await self._reader.look_at(self._names.queue)
            if not requests.consumer_count:
                raise DeadLettersFailed(
                    f"Nobody consumes '{self._names.queue}': the letters wait there for a worker."
                )
            now = asyncio.get_running_loop().time()
            until = (until or now + REFUSED_WITHIN) if not requests.message_count else None
            if until is not None and now >= until:
                break
            await asyncio.sleep(0.1)
        return refused

    async def _publication_of(self, message: Message) -> Publication:
        """Requests go to the request queue, events that Prefect refused to the outbox.

        Raises:
            ValueError: see :func:`sent_again`, or no worker wrote the event. A producer's request
                may look like an event, but as a letter it has no ``user_id``.
        """
        if (message.app_id, message.type) == (APP_ID, EVENT_TYPE):
            login = await login_of(self._connection)
            if login is not None and message.user_id not in {login, *self._fleet_logins}:
                raise ValueError("it looks like an event, and no worker wrote it (see WORKER_FLEET_USERS)")
            # One event, or the list of a message that no worker's login wrote.
            events = message.body.removeprefix(b"[").removesuffix(b"]")
            return events_message(self._names.events_queue, [events], login)
        return sent_again(message, self._names.queue)

    async def _publish(self, letter: Letter, publication: Publication) -> None:
        confirmation = await unless_blocked(self._connection.frames, self._until_confirmed(publication))
        if confirmation.confirms[0] is Confirm.RETURN:
            raise DeadLettersFailed(f"{letter.id}: the queue '{publication.queue}' does not stand")
        if not confirmation.all_taken:
            raise DeadLettersFailed(
                f"{letter.id}: the broker does not take it: is '{publication.queue}' full?"
            )

    async def _until_confirmed(self, publication: Publication) -> Confirmation:
        confirmation = await self._publisher.publish([publication])
        await confirmation.wait(CONFIRM_TIMEOUT)
        return confirmation

    async def _take(self) -> Letter | Undeliverable | None:
        taken = await self._reader.take()
        if isinstance(taken, Undeliverable):
            self.undeliverable.append(taken)
            return taken
        return None if taken is None else Letter.of(taken)

    async def _renew(self) -> None:
        """Replace letters that were returned too often."""
        for letter in self._held:
            if letter.delivery.delivery_count >= LOOKS:
                await self._publish(
                    letter, _counted_anew(letter.delivery.message, self._names.dead_letter_queue)
                )
                await letter.taken.acknowledge()


def sent_again(message: Message, queue: str) -> Publication:
    """A dead letter as its producer sent it, byte for byte.

    ``expiration``, another user's ``user_id``, ``CC`` and ``BCC`` are not restored.

    Raises:
        ValueError: its properties or headers could not be kept.
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
    if raw is None and isinstance(mode, bytearray):  # empty: the request had none
        values |= {"delivery_mode": bytes(mode)}
    present = {name: value for name, value in values.items() if value and name not in _NOT_SENT_AGAIN}
    return Publication(queue, join(in_order(present)), message.body)


def _counted_anew(message: Message, queue: str) -> Publication:
    """A copy of a dead letter without its delivery count. A header replaces ``user_id``, which the
    broker accepts only from that user.
    """
    values = split(message.raw_properties)
    headers = [each for each in split_table(values["headers"]) if each[0] != DELIVERY_COUNT_HEADER]
    if user := values.pop("user_id", b"")[1:]:
        headers.append((USER_HEADER, b"S" + struct.pack(">I", len(user)) + user))
    values["headers"] = join_table(headers)
    return Publication(queue, join(in_order(values)), message.body)


@asynccontextmanager
async def open_dead_letters(
    urls: str, names: QueueNames, fleet_logins: Collection[str] = ()
) -> AsyncIterator[DeadLetters]:
    """Open the dead letters of a request queue.

    Args:
        fleet_logins: the workers' logins, besides that of the URL. Events of others are not
            replayed.

    Raises:
        BrokerUnavailable, BrokerRefused: see :func:`worker.broker.connection.connect`.
        DeadLettersFailed: the queue does not exist.
    """
    # Publishing has its own connection: during an alarm the broker stops reading from it.
    connection = await connect(urls, name=f"{NAME} publishing", connection_class=Connection)
    reader = LetterReader(urls, names.dead_letter_queue, connection)
    try:
        await reader.count()
        publisher = Publisher(connection, await connection.channel())
        async with DeadLetters(connection, reader, publisher, names, fleet_logins) as letters:
            yield letters
    except ChannelNotFoundEntity:
        raise DeadLettersFailed(
            f"The queue '{names.dead_letter_queue}' does not stand at this broker."
        ) from None
    finally:
        await reader.close()
        await close_quietly(connection)
