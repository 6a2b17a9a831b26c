"""Hands events over to Prefect's API, one request at a time, until it has taken them; knows no
queue.

Most of what goes wrong concerns all events, and is waited out. Where the API takes others and not
this one, the event becomes a dead letter: it would hold up all that come behind it.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import orjson
import structlog

from worker.broker.connection import ChannelLost
from worker.broker.publication import EVENTS_HEADER, refused_event
from worker.broker.publisher import Fate
from worker.contract.encoding import dumps
from worker.events.api import APIAway, EventsRefused, PrefectAPI
from worker.events.outbox import CHUNK_MAX
from worker.events.stay import PREFETCH, Stay, Taken
from worker.observability import metrics
from worker.tasks.backoff import Backoff

log = structlog.get_logger(__name__)

# So many bytes go in one request, unless one message alone has more: nginx, which may stand before
# the API, takes a megabyte by default.
POST_BYTES = 512 * 1024
# Messages that the API does not take for so long go back to the outbox, before the broker's
# consumer timeout (30 minutes by default) closes the channel over them. Another worker may reach
# it. Seconds.
HOLD_SECONDS = 600.0
# So often the API may fail before the events are tried in parts: with the pauses between, 11 to 23
# seconds, in which most servers have started anew.
TRIES_TOGETHER = 8


class HandedBack(Exception):
    """The API was away for longer than messages can be held."""


class HandOver:
    """Hands over what the stays at the outbox take, one after the other.

    Args:
        api: that is to have the events.
        dead_letter_queue: has what it refuses.
        events_per_second: at the most.
        stopping: no request is begun once this is set, after one has failed.
        users: the logins of the fleet, besides this worker's.
    """

    def __init__(
        self,
        api: PrefectAPI,
        dead_letter_queue: str,
        events_per_second: float,
        stopping: asyncio.Event,
        users: Collection[str] = (),
    ) -> None:
        self._api = api
        self._users = frozenset(users)
        self._dead_letter_queue = dead_letter_queue
        self._seconds_per_event = 1 / events_per_second
        self._stopping = stopping
        self._next_at = 0.0
        self._until = 0.0
        self._backoff = Backoff()

    async def serve(self, stay: Stay) -> None:
        """Hand over what comes, until the stay ends.

        Raises:
            ChannelLost: the messages are the broker's again, and another worker's.
            HandedBack: it takes too long.
        """
        while messages := await stay.messages.take(PREFETCH, max_size=POST_BYTES):
            if genuine := await self._genuine(stay, messages):
                messages += await self._hand_over(stay, genuine)
            await stay.acknowledge(messages)

    async def _genuine(self, stay: Stay, messages: Sequence[Taken]) -> list[Taken]:
        """Those that a worker of the fleet has written, as the broker vouches for by ``user_id``.
        Whoever may publish to the default exchange can write others, which become dead letters.
        """
        if stay.login is None:
            return list(messages)
        genuine: list[Taken] = []
        for taken in messages:
            user_id = taken.message.user_id
            if user_id == stay.login or user_id in self._users:
                genuine.append(taken)
                continue
            user = f"the user '{user_id}'" if user_id else "a user that it does not name"
            reason = f"No event of a worker: it is of {user}, and not of '{stay.login}' (WORKER_FLEET_USERS)"
            await self._dead_letter(stay, taken.message.body, 403, reason)
            metrics.event_forged()
        return genuine

    async def _hand_over(self, stay: Stay, messages: list[Taken]) -> list[Taken]:
        """Hand over messages together; where the API does not take them, their events in parts.

        Returns:
            What came meanwhile, and was tried with what was left.
        """
        joined: list[Taken] = []
        self._until = time.monotonic() + HOLD_SECONDS
        body, count = _joined(messages), sum(_count(message) for message in messages)
        left: list[bytes] | None = None
        while left is None or left:
            try:
                await self._post(stay, body, count, tries=TRIES_TOGETHER)
                return joined
            except (EventsRefused, APIAway) as error:
                left = await self._sift(stay, _events(messages) if left is None else left, error)
            if left and len(stay.messages):
                more = await stay.messages.take(PREFETCH, max_size=POST_BYTES)
                joined += more
                left += _events(await self._genuine(stay, more))
            body, count = _list(left), len(left)
        return joined

    async def _sift(self, stay: Stay, events: list[bytes], error: EventsRefused | APIAway) -> list[bytes]:
        """Hand over in parts what is not taken together, down to each event.

        Returns:
            Those that are left, as nothing tells whether the API would take others.
        """
        doubtful: list[bytes] = []
        taken = await self._in_halves(stay, events, error, doubtful)
        if taken is None:
            return doubtful
        return [event for event in doubtful if not await self._settle_beside(stay, event, taken)]

    async def _in_halves(
        self, stay: Stay, events: list[bytes], error: EventsRefused | APIAway, doubtful: list[bytes]
    ) -> bytes | None:
        """Returns one that the API has taken; None if it took none."""
        taken = None
        half = len(events) // 2
        for part in (events[:half], events[half:]) if half else ():
            try:
                await self._post(stay, _list(part), len(part))
                taken = part[-1]
            except (EventsRefused, APIAway) as failed:
                taken = await self._in_halves(stay, part, failed, doubtful) or taken
        if len(events) == 1 and isinstance(error, EventsRefused):
            await self._dead_letter(stay, events[0], error.status, str(error))
            metrics.event_refused()
        elif len(events) == 1:
            doubtful += events
        return taken

    async def _settle_beside(self, stay: Stay, event: bytes, taken: bytes) -> bool:
        """Settle an event by another that the API has taken before: if it takes that again, and not
        this one, this one is to blame. (Prefect knows the other by its id, and forgets it.)

        Returns:
            Whether it is settled.
        """
        try:
            if await self._fails(stay, event) is None:
                return True
            if await self._fails(stay, taken) is not None:
                return False
            away = await self._fails(stay, event)
        except EventsRefused as refused:
            await self._dead_letter(stay, event, refused.status, str(refused))
            metrics.event_refused()
        else:
            if away is not None:
                await self._dead_letter(stay, event, away.status, f"{away} (and it takes others)")
                metrics.event_refused()
        return True

    async def _fails(self, stay: Stay, event: bytes) -> APIAway | None:
        try:
            await self._post(stay, _list([event]), 1)
        except APIAway as away:
            return away
        return None

    async def _post(self, stay: Stay, body: bytes, count: int, *, tries: int = 1) -> None:
        """Hand over events; waits after each failure.

        Raises:
            APIAway: so many tries failed.
            EventsRefused: it is in vain.
            ChannelLost, HandedBack: as :meth:`serve` does.
        """
        for more_tries in reversed(range(tries)):
            await asyncio.sleep(self._next_at - time.monotonic())
            self._next_at = max(self._next_at, time.monotonic()) + count * self._seconds_per_event
            try:
                await self._api.post_events(body)
            except APIAway as away:
                metrics.events_held(str(away))
                log.warning("events_held", error=str(away), tries=self._backoff.tries + 1, events=count)
                if time.monotonic() > self._until:
                    raise HandedBack from away
                await self._backoff.sleep(self._stopping)
                if stay.messages_are_lost or self._stopping.is_set():
                    raise stay.lost from away
                if not more_tries:
                    raise
            else:
                if self._backoff.tries:
                    log.info("events_go_on")
                self._backoff.reset()
                metrics.events_held(None)
                metrics.events_delivered(count)
                return

    async def _dead_letter(self, stay: Stay, event: bytes, status: int, error: str) -> None:
        """Keep an event that is refused where refused requests are; returns once it is there."""
        log.warning("event_refused", error=error, content=event[:200].decode(errors="replace"))
        queue = self._dead_letter_queue
        letter = refused_event(
            event, queue=queue, status=status, error=error, now=datetime.now(UTC), login=stay.login
        )
        confirmation = await stay.publisher.publish([letter])
        await confirmation.done
        if confirmation.fates[0] is not Fate.CONFIRMED:
            # Its message stays in the outbox, and is tried again.
            metrics.events_held(f"the queue '{queue}' does not take one that the API refuses")
            raise ChannelLost(f"the queue '{queue}' does not take a dead letter")


def _count(taken: Taken) -> int:
    """How many events a message has, as it says; another than the worker can have written it."""
    count = taken.message.headers.get(EVENTS_HEADER)
    return min(count, CHUNK_MAX) if isinstance(count, int) and count > 0 else 1


def _joined(messages: Sequence[Taken]) -> bytes:
    """The events of all messages as one JSON list."""
    if len(messages) == 1:
        return messages[0].message.body
    return b"[%b]" % b",".join(taken.message.body[1:-1] for taken in messages)


def _events(messages: Sequence[Taken]) -> list[bytes]:
    """The events of messages, each as JSON; a body that is no list counts as one."""
    found: list[bytes] = []
    for taken in messages:
        body = taken.message.body
        try:
            events = orjson.loads(body)
        except orjson.JSONDecodeError:
            events = None
        found += [dumps(event) for event in events] if isinstance(events, list) else [body]
    return found


def _list(events: Sequence[bytes]) -> bytes:
    return b"[%b]" % b",".join(events)
