"""Sends events to Prefect's API, one request at a time, until it accepts them. Knows no queue.

Most faults concern all events and are waited out. If the API accepts others but not this one, the
event becomes a dead letter: it would block all later ones.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from pydantic_core import from_json

from worker.amqp.publication import Confirm
from worker.broker.connection import ChannelLost
from worker.broker.messages import EVENTS_HEADER, refused_event
from worker.broker.stay import HandedBack, Stay, Taken
from worker.contract.encoding import dumps
from worker.events.api import APIAway, EventsRefused, PrefectAPI
from worker.events.outbox import CHUNK_MAX
from worker.events.patience import Patience
from worker.observability import metrics
from worker.settings import Settings
from worker.tasks.backoff import Backoff

log = structlog.get_logger(__name__)

# Most bytes of one request, unless a single message has more. nginx, which may stand in front of
# the API, accepts a megabyte by default.
POST_BYTES = 512 * 1024
# Most messages to hold at once. Each has the events of one batch, in quiet times just one. With
# several messages, many events go in one request when the API is back.
PREFETCH = 20


class HandOver:
    """Sends the events of the outbox's consumers, one consumer after the other.

    Args:
        api: receives the events.
        settings: the rate, the queue of the dead letters, and the fleet's other logins.
        stopping: once set, a failed request is not tried again.
        patience: with the API.
    """

    def __init__(
        self, api: PrefectAPI, settings: Settings, stopping: asyncio.Event, patience: Patience
    ) -> None:
        self._api = api
        self._users = frozenset(settings.fleet_logins)
        self._dead_letter_queue = settings.queue_names.dead_letter_queue
        self._seconds_per_event = 1 / settings.prefect_events_per_second
        self._stopping = stopping
        self._patience = patience
        self._next_at = 0.0
        self._until = 0.0
        self._backoff = Backoff(longest=patience.pause)

    async def serve(self, stay: Stay) -> None:
        """Send all events until the consumer ends.

        Raises:
            ChannelLost: the messages have returned to the broker, for another worker.
            HandedBack: the API is down for longer than messages can be held.
        """
        while messages := await stay.messages.take(PREFETCH, max_size=POST_BYTES):
            if genuine := await self._genuine(stay, messages):
                messages += await self._hand_over(stay, genuine)
            await stay.acknowledge(messages)

    async def _genuine(self, stay: Stay, messages: Sequence[Taken]) -> list[Taken]:
        """The messages that a worker of the fleet wrote, by the ``user_id`` that the broker checks.
        Others, from any user with write on the default exchange, become dead letters.
        """
        genuine: list[Taken] = []
        for taken in messages:
            if stay.is_of_fleet(taken.message, self._users):
                genuine.append(taken)
                continue
            user_id = taken.message.user_id
            user = f"the user '{user_id}'" if user_id else "a user that it does not name"
            reason = f"No event of a worker: it is of {user}, and not of '{stay.login}' (WORKER_FLEET_USERS)"
            await self._dead_letter(stay, taken.message.body, 403, reason)
            metrics.events("forged")
        return genuine

    async def _hand_over(self, stay: Stay, messages: list[Taken]) -> list[Taken]:
        """Send messages together. If the API does not accept them, send their events in parts.

        Returns:
            The messages that arrived meanwhile and were sent with the rest.
        """
        joined: list[Taken] = []
        self._until = time.monotonic() + self._patience.hold
        body, count = _joined(messages), sum(_count(message) for message in messages)
        left: list[bytes] | None = None
        while left is None or left:
            try:
                await self._post(stay, body, count, tries=self._patience.tries_together)
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
        """Send events in parts, down to single ones.

        Returns:
            The events that are left: it is unknown whether the API would accept others.
        """
        doubtful: list[bytes] = []
        taken = await self._in_halves(stay, events, error, doubtful)
        if taken is None:
            return doubtful
        return [event for event in doubtful if not await self._settle_beside(stay, event, taken)]

    async def _in_halves(
        self, stay: Stay, events: list[bytes], error: EventsRefused | APIAway, doubtful: list[bytes]
    ) -> bytes | None:
        """Send events in halves. Returns an event that the API accepted, or None."""
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
            metrics.events("refused")
        elif len(events) == 1:
            doubtful += events
        return taken

    async def _settle_beside(self, stay: Stay, event: bytes, taken: bytes) -> bool:
        """Compare an event with one that the API accepted before. If the API accepts that again,
        but not this one, this one is bad. (Prefect ignores the repeated one by its id.)

        Returns:
            Whether the event is settled.
        """
        try:
            if await self._fails(stay, event) is None:
                return True
            if await self._fails(stay, taken) is not None:
                return False
            away = await self._fails(stay, event)
        except EventsRefused as refused:
            await self._dead_letter(stay, event, refused.status, str(refused))
            metrics.events("refused")
        else:
            if away is not None:
                await self._dead_letter(stay, event, away.status, f"{away} (and it takes others)")
                metrics.events("refused")
        return True

    async def _fails(self, stay: Stay, event: bytes) -> APIAway | None:
        try:
            await self._post(stay, _list([event]), 1)
        except APIAway as away:
            return away
        return None

    async def _post(self, stay: Stay, body: bytes, count: int, *, tries: int = 1) -> None:
        """Send events, with a pause after each failure.

        Raises:
            APIAway: all tries failed.
            EventsRefused: the API refuses the events.
            ChannelLost, HandedBack: see :meth:`serve`.
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
                metrics.events("delivered", count)
                return

    async def _dead_letter(self, stay: Stay, event: bytes, status: int, error: str) -> None:
        """Move a refused event to the dead letters. Returns once the broker has confirmed it."""
        log.warning("event_refused", error=error, content=event[:200].decode(errors="replace"))
        queue = self._dead_letter_queue
        letter = refused_event(
            event, queue=queue, status=status, error=error, now=datetime.now(UTC), login=stay.login
        )
        confirmation = await stay.publisher.publish([letter])
        await confirmation.wait()
        if confirmation.confirms[0] is not Confirm.ACK:
            # Its message stays in the outbox and is tried again.
            metrics.events_held(f"the queue '{queue}' does not take one that the API refuses")
            raise ChannelLost(f"the queue '{queue}' does not take a dead letter")


def _count(taken: Taken) -> int:
    """The number of events in a message, from its header, which may be forged."""
    count = taken.message.headers.get(EVENTS_HEADER)
    return min(count, CHUNK_MAX) if isinstance(count, int) and count > 0 else 1


def _joined(messages: Sequence[Taken]) -> bytes:
    """The events of all messages as one JSON list."""
    if len(messages) == 1:
        return messages[0].message.body
    return b"[%b]" % b",".join(taken.message.body[1:-1] for taken in messages)


def _events(messages: Sequence[Taken]) -> list[bytes]:
    """The events of messages, each as JSON. A body that is no list counts as one event."""
    found: list[bytes] = []
    for taken in messages:
        body = taken.message.body
        try:
            events = from_json(body)
        except ValueError:
            events = None
        found += [dumps(event) for event in events] if isinstance(events, list) else [body]
    return found


def _list(events: Sequence[bytes]) -> bytes:
    return b"[%b]" % b",".join(events)
