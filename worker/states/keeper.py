"""Keeps the cursor at the broker: takes it from its queue, and puts the next one there. Knows no
database.

The cursor stays unacknowledged until the next one is confirmed, so it is never lost.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from worker.amqp.publication import Confirm
from worker.broker.connection import ChannelLost
from worker.broker.messages import cursor_message
from worker.broker.stay import Stay, Taken
from worker.observability import metrics
from worker.states.cursor import Cursor, Unreadable, furthest, read_cursor
from worker.states.patience import Patience

log = structlog.get_logger(__name__)

# Most cursors to hold at once: the last one, the next one, and those that others have put there.
PREFETCH = 20
_ALWAYS = datetime.max.replace(tzinfo=UTC)


class Keeper:
    """Keeps the cursor during one stay at its queue.

    Args:
        fleet: the logins of the fleet's other workers.
    """

    def __init__(self, stay: Stay, queue: str, fleet: frozenset[str], patience: Patience) -> None:
        self._stay = stay
        self._queue = queue
        self._fleet = fleet
        self._patience = patience
        # The messages of the cursor that counts; none until the broker has delivered it.
        self._held: list[Taken] = []
        self._last: UUID | None = None

    async def take(self, now: Callable[[], Awaitable[datetime | None]]) -> Cursor | None:
        """Wait for the cursor. None if the stay ends before.

        The broker does not say whether there is no cursor, or another worker holds it. So each
        worker offers to begin, once. Any other cursor goes before an offer.

        Args:
            now: returns the database's time; None if the worker stops.

        Raises:
            ChannelLost: the channel ended, or the queue does not take the offer.
        """
        if (began := await now()) is None:
            return None
        offer = Cursor(began=True, told=began, reached=began)
        if offered := self._stay.was_empty:
            await self.put(offer)
        while True:
            try:
                async with asyncio.timeout(None if offered else self._patience.first):
                    taken = await self._stay.messages.take(PREFETCH)
            except TimeoutError:
                await self.put(offer)
                offered = True
                continue
            # A predecessor may have left two.
            await asyncio.sleep(self._patience.settle)
            taken += await self._waiting()
            if not taken or (latest := await now()) is None:
                return None
            found = self._read(taken, latest + timedelta(seconds=self._patience.ahead))
            if found:
                break
            await self.put(offer)
            await self._stay.acknowledge(taken, multiple=False)
        cursor = furthest([each for each, _ in found])
        self._held = [each for read, each in found if read is cursor]
        await self._drop(taken)
        if cursor.began:
            log.warning("states_begin_without_cursor", at=cursor.told, queue=self._queue)
            metrics.states_begun.inc()
        return cursor

    async def put(self, cursor: Cursor) -> None:
        """Publish a cursor, then acknowledge the last one.

        Raises:
            ChannelLost: the channel ended, or the queue does not take it.
        """
        confirmation = await self._stay.publisher.publish(
            [cursor_message(self._queue, cursor.encode(), self._stay.login)]
        )
        await confirmation.wait()
        if confirmation.confirms[0] is not Confirm.ACK:
            raise ChannelLost(f"the queue '{self._queue}' does not take a cursor")
        last, self._held, self._last = self._held, [], cursor.id
        await self._stay.acknowledge(last, multiple=False)

    async def sort(self) -> None:
        """Hold the cursor that was put last, and acknowledge all others that have come."""
        if taken := await self._waiting():
            self._held += [each for cursor, each in self._read(taken, _ALWAYS) if cursor.id == self._last]
            await self._drop(taken)

    async def _waiting(self) -> list[Taken]:
        return await self._stay.messages.take(PREFETCH) if len(self._stay.messages) else []

    async def _drop(self, taken: Sequence[Taken]) -> None:
        await self._stay.acknowledge([each for each in taken if each not in self._held], multiple=False)

    def _read(self, taken: Sequence[Taken], latest: datetime) -> list[tuple[Cursor, Taken]]:
        """The cursors among these messages. Other messages are logged and left out."""
        cursors: list[tuple[Cursor, Taken]] = []
        for each in taken:
            message = each.message
            try:
                if not self._stay.is_of_fleet(message, self._fleet):
                    raise Unreadable(f"it is of the user '{message.user_id}' (WORKER_FLEET_USERS)")
                cursors.append((read_cursor(message.body, latest), each))
            except Unreadable as error:
                content = message.body[:200].decode(errors="replace")
                log.warning("cursor_set_aside", queue=self._queue, error=str(error), content=content)
                metrics.cursors_set_aside.inc()
        return cursors
