"""The dead letters: refused requests, kept whole, to look at, replay or purge.

Letters are taken without acknowledgement. When the connection ends, the broker puts them back in
their places. Until then no other consumer sees them. Letters that the broker can't deliver are
skipped. Only the ids of letters stay in memory.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Self

from aio_pika.exceptions import ChannelNotFoundEntity

from worker.amqp.publication import Confirm, Publication
from worker.amqp.transport import Connection
from worker.broker.connection import close_quietly, connect, unless_blocked
from worker.broker.incoming import read_message
from worker.broker.login import login_of
from worker.broker.messages import events_message
from worker.broker.publisher import Confirmation, Publisher
from worker.contract.message import Message, fingerprint
from worker.contract.topology import QueueNames
from worker.operate.editing import Change, ChangeRefused, Checking
from worker.operate.letter import Letter, Summary, id_of
from worker.operate.letter_copies import counted_anew, is_event, sent_again
from worker.operate.letter_holder import NAME
from worker.operate.letter_reader import LetterReader, Taken, Undeliverable
from worker.operate.letter_spool import Spool
from worker.operate.picked import Picked, in_chunks
from worker.operate.selection import Selection

# RabbitMQ 4 drops a message at its default delivery limit (20 returns to the queue). After this
# many returns a copy at the end of the queue replaces a letter, with a new count.
LOOKS = 15
# Longest wait for the broker's confirm, in seconds.
CONFIRM_TIMEOUT = 30.0
# Once the request queue is empty, a worker refuses bad requests within this time, in seconds. A
# guess: many times the time of a batch.
REFUSED_WITHIN = 5.0


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


Progress = Callable[[int], None]


class DeadLetters:
    """The dead letters of one request queue. Use :func:`open_dead_letters`.

    RabbitMQ counts each look at a letter. So open them once for a command, and look once: by
    :meth:`look` or by :meth:`pick`.

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
        self._spool = Spool()
        self._sent: Counter[str] = Counter()
        self._arrived: deque[Summary] = deque()
        self._old: list[Picked] = []
        self.undeliverable: list[Undeliverable] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._spool.close()
        # When the connection ends, the broker puts unacknowledged letters back in their places.
        # Rejected ones would go to the end of the queue.

    async def count(self) -> int:
        """The number of letters."""
        return await self._reader.count()

    async def look(self, progress: Progress = lambda count: None) -> AsyncIterator[Letter]:
        """All letters, the oldest first. They are put back in the end. Go through them to the end:
        the broker counts a look at each.
        """
        async for letter in self._all(progress):
            yield letter
            self._put_back(letter)
        await self._renew()

    async def pick(
        self, selection: Selection | None, progress: Progress = lambda count: None, *, keep: bool = True
    ) -> list[Picked]:
        """Pick letters to act on, the oldest first. Those that are not acted on are put back.

        Args:
            selection: None picks none.
            keep: keep their content, on disk if it is large. :meth:`replay` needs it.

        Raises:
            UnknownIds: an id of the selection is no letter's. Nothing was done.
        """
        picked: list[Picked] = []
        unknown = list(selection.ids) if selection is not None else []
        async for letter in self._all(progress):
            unknown = [each for each in unknown if not letter.id.startswith(each)]
            if selection is not None and selection.matches(letter):
                kept = self._spool.put(letter.delivery.message) if keep else None
                picked.append(Picked(letter.id, letter.taken, kept))
            else:
                self._put_back(letter)
        await self._renew()
        if unknown:
            raise UnknownIds(unknown)
        return picked

    def read(self, picked: Picked) -> Message:
        """The content of a picked letter."""
        assert picked.kept is not None
        return self._spool.get(picked.kept)

    async def check(self, picked: Iterable[Picked], change: Change, checking: Checking) -> None:
        """Check changed letters as a worker does, before any is sent.

        Raises:
            DeadLettersFailed: a letter can't be sent again.
            ChangeRefused: a letter can't be changed so, or a worker would refuse it.
        """
        for each in picked:
            publication = await self._publication(each, None, change)
            checking.check(each.id, read_message(publication.properties, publication.body))

    async def replay(
        self,
        picked: Iterable[Picked],
        progress: Progress = lambda count: None,
        *,
        to: str | None = None,
        change: Change | None = None,
    ) -> int:
        """Send letters to the request queue, as first sent and in their order. Returns their
        number.

        A letter is removed once the broker has confirmed it in the request queue. An interruption
        between the two leaves it in both queues, and the next replay sends it once more. That makes
        no second run if the request has an idempotency key or a message id. Properties that the
        dead letter lost (``expiration``, another user's ``user_id``, ``CC`` and ``BCC``) are not
        restored.

        Args:
            to: send them to this queue instead.
            change: the change to each body.

        Raises:
            DeadLettersFailed: the queue is missing or full, or a letter can't be sent again. Others
                may have been sent before.
            PublishersBlocked: the broker has an alarm.
        """
        sent = 0
        for chunk in in_chunks(picked):
            moves: list[tuple[Taken, Publication]] = []
            failure: DeadLettersFailed | None = None
            for each in chunk:
                try:
                    moves.append((each.taken, await self._publication(each, to, change)))
                except DeadLettersFailed as error:
                    failure = failure or error
            await self._publish_and_acknowledge(moves)
            await self._until_acknowledged(taken for taken, _ in moves)
            self._sent.update(_id_of(publication) for _, publication in moves)
            sent += len(moves)
            progress(len(moves))
            if failure is not None:
                raise failure
        return sent

    async def purge(
        self,
        picked: Iterable[Picked],
        progress: Progress = lambda count: None,
        *,
        undeliverable: bool = False,
    ) -> int:
        """Delete letters. Returns their number.

        Args:
            undeliverable: delete the letters that the broker can't deliver, too.
        """
        removed = 0
        for chunk in in_chunks(picked):
            for each in chunk:
                await each.taken.acknowledge()
            await self._until_acknowledged(each.taken for each in chunk)
            removed += len(chunk)
            progress(len(chunk))
        for one in self.undeliverable if undeliverable else ():
            await self._reader.acknowledge(one)
            removed += 1
        return removed

    async def refused_again(self) -> list[Summary]:
        """The replayed letters that were refused again. Waits until the request queue has been
        empty for ``REFUSED_WITHIN`` seconds.

        Raises:
            DeadLettersFailed: the request queue has no consumer.
        """
        waiting, refused = Counter(self._sent), []
        until: float | None = None
        while waiting.total():
            taken = None if self._arrived else await self._take()
            if isinstance(taken, Letter):
                self._note_arrival(taken)
            if self._arrived:
                letter = self._arrived.popleft()
                if waiting[letter.id]:
                    waiting[letter.id] -= 1
                    refused.append(letter)
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
        await self._renew()
        return refused

    async def _all(self, progress: Progress) -> AsyncIterator[Letter]:
        """All letters that are there now, after which those that were returned too often are
        replaced. Letters that arrive meanwhile stay, such as replayed ones that were refused again.
        """
        for _ in range(await self._reader.begin()):
            taken = await self._take()
            progress(1)
            if taken is None:
                break
            if isinstance(taken, Letter):
                yield taken
        await self._reader.end()

    async def _take(self) -> Letter | Undeliverable | None:
        taken = await self._reader.take()
        if isinstance(taken, Undeliverable):
            self.undeliverable.append(taken)
            return taken
        return None if taken is None else Letter.of(*taken)

    def _put_back(self, letter: Letter) -> None:
        """Leave a letter to be put back. It is replaced if it was returned too often."""
        if letter.delivery.delivery_count >= LOOKS:
            kept = self._spool.put(letter.delivery.message)
            self._old.append(Picked(letter.id, letter.taken, kept))

    async def _renew(self) -> None:
        """Replace letters that were returned too often."""
        for chunk in in_chunks(self._old):
            copies = [
                (each.taken, counted_anew(self.read(each), self._names.dead_letter_queue)) for each in chunk
            ]
            await self._publish_and_acknowledge(copies)
        # A get would take a copy: so one for all of them.
        await self._until_acknowledged(each.taken for each in self._old)
        self._old = []

    async def _publish_and_acknowledge(self, moves: Sequence[tuple[Taken, Publication]]) -> None:
        """Publish in this order, and acknowledge each letter whose copy is confirmed."""
        if not moves:
            return
        publications = [publication for _, publication in moves]
        confirmation = await unless_blocked(self._connection.frames, self._until_confirmed(publications))
        failed: str | None = None
        for (taken, publication), confirm in zip(moves, confirmation.confirms, strict=True):
            if confirm is Confirm.ACK:
                await taken.acknowledge()
            elif confirm is Confirm.RETURN:
                failed = failed or f"{id_of(taken.identity)}: the queue '{publication.queue}' does not stand"
            else:
                taker = f"is '{publication.queue}' full?"
                failed = failed or f"{id_of(taken.identity)}: the broker does not take it: {taker}"
        if failed is not None:
            raise DeadLettersFailed(failed)

    async def _until_confirmed(self, publications: Sequence[Publication]) -> Confirmation:
        confirmation = await self._publisher.publish(publications)
        await confirmation.wait(CONFIRM_TIMEOUT)
        return confirmation

    async def _until_acknowledged(self, acknowledged: Iterable[Taken]) -> None:
        for arrived in await self._reader.until_acknowledged(acknowledged):
            self._note_arrival(Letter.of(*arrived))

    def _note_arrival(self, letter: Letter) -> None:
        self._arrived.append(letter.summary())
        self._put_back(letter)

    async def _publication(self, picked: Picked, to: str | None, change: Change | None) -> Publication:
        """Requests go to the request queue, events that Prefect refused to the outbox.

        Raises:
            DeadLettersFailed: it can't be sent again.
            ChangeRefused: it can't be changed so.
        """
        message = self.read(picked)
        try:
            if is_event(message):
                if to is not None or change is not None:
                    raise DeadLettersFailed(f"{picked.id}: an event goes to the outbox, as it is")
                return await self._event(message)
            publication = sent_again(message, to or self._names.queue)
        except ValueError as error:
            raise DeadLettersFailed(f"{picked.id}: {error}, so it can't be sent again; purge it") from error
        if change is None:
            return publication
        try:
            return publication._replace(body=change(message.body))
        except ValueError as error:
            raise ChangeRefused(picked.id, str(error)) from error

    async def _event(self, message: Message) -> Publication:
        """An event for the outbox.

        Raises:
            ValueError: no worker wrote the event. A producer's request may look like an event, but
                as a letter it has no ``user_id``.
        """
        login = await login_of(self._connection)
        if login is not None and message.user_id not in {login, *self._fleet_logins}:
            raise ValueError("it looks like an event, and no worker wrote it (see WORKER_FLEET_USERS)")
        # One event, or the list of a message that no worker's login wrote.
        events = message.body.removeprefix(b"[").removesuffix(b"]")
        return events_message(self._names.events_queue, [events], login)


def _id_of(publication: Publication) -> str:
    """The id of the letter that a publication becomes if it is refused."""
    return id_of(fingerprint(read_message(publication.properties, publication.body)))


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
