"""The tail: reads states as they become visible, and each once more until none can be missing.
Knows no broker.

States have an order, see :mod:`worker.store.states`. Its end is read again and again. Behind the
end, sweeps go through the states at a growing age and find those that became visible late. The last
sweep waits until all transactions of its time have ended. States that were published are left out.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import Protocol

import structlog

from worker.states.cursor import Cursor
from worker.states.patience import Patience
from worker.states.settled import Commits, Settled, Transactions
from worker.states.told import Digest, Told, told_before
from worker.store.states import Key, Look, Mark, Page, Written

log = structlog.get_logger(__name__)

# Seconds between two times at which memory is tidied.
_TIDY_SECONDS = 5.0
# A database's clock that differs by less was only adjusted, or read out of order.
_SET_BACK = timedelta(seconds=1)
# Publishes states. All are confirmed, or left out, once it returns.
Tell = Callable[[Sequence[Written]], Awaitable[None]]


class States(Protocol):
    """Reads states; :class:`worker.store.states.StatesReader`."""

    def key(self, instant: datetime) -> Key: ...
    def time(self, key: Key) -> datetime: ...
    async def page(self, after: Key, before: Key, limit: int) -> Page: ...
    async def mark(self) -> Mark: ...


class _Sweep:
    """Goes through the states at one age.

    Attributes:
        after: the states up to here were read at that age.
    """

    def __init__(self, after: Key, age: float) -> None:
        self.after = after
        self.age = timedelta(seconds=age)
        # Not each time: a sweep that stays a little behind reads more states at once.
        self.pause = self.age / 4


class Tail:
    """Reads the states after a cursor.

    Args:
        states: the database's.
        sqlite: the database is an SQLite file.
        tell: gets all states, by their timestamps among those that are read together.
        cursor: where to begin.

    Attributes:
        settled: which of the database's transactions have ended.
    """

    def __init__(
        self, states: States, *, sqlite: bool, tell: Tell, cursor: Cursor, patience: Patience
    ) -> None:
        self.settled: Settled = (
            Commits() if sqlite else Transactions(cursor.told, cursor.open, patience.forgotten, patience.mark)
        )
        self._states = states
        self._tell = tell
        self._patience = patience
        self._told = Told(patience.told, patience.last)
        start = states.key(cursor.told)
        # The end is read from one place, and was read up to the other.
        self._after = self._front = start
        self._window: deque[Key] = deque(maxlen=patience.window)
        self._sweeps = [_Sweep(start, age) for age in (*patience.again, patience.late)]
        self._last = _Sweep(start, patience.late)
        self._late = timedelta(seconds=patience.late)
        # No state before this place is published, whatever transaction wrote it.
        self._begin = min((start, *(states.key(since - self._late) for since in cursor.open.values())))
        self._reached = cursor.reached
        self._looked: tuple[float, datetime] | None = None
        self._wants_mark = not sqlite
        self._tidied = monotonic()
        self._digests = {second: Digest(*each) for second, each in cursor.seconds.items()}
        self._ids = frozenset(cursor.ids)

    def cursor(self) -> Cursor:
        """How far states were published."""
        digests = self._told.digests(self._patience.seconds)
        told = self._states.time(self._last.after)
        return Cursor(
            told=told,
            reached=max(told, self._reached),
            seconds={second: (each.count, each.ids) for second, each in digests.items()},
            ids=list(self._told.last),
            open=self.settled.forgotten,
        )

    @property
    def behind(self) -> float:
        """For how many seconds states may wait now that are visible."""
        if self._looked is None:
            return 0.0
        at, now = self._looked
        return max(0.0, monotonic() - at + (now - self._reached).total_seconds())

    async def recall(self) -> None:
        """Find the states that an earlier teller published, by the cursor.

        Raises:
            Fault: the database is away or busy.
        """
        if not self._digests:
            return
        after = self._last.after
        before = self._states.key(datetime.fromtimestamp(max(self._digests) + 1, self._reached.tzinfo))
        known: list[Written] = []
        while True:
            page = await self._states.page(after, before, self._patience.page)
            known += page.states
            if not page.full or len(known) > self._patience.told:
                break
            after = page.reaches
        self._told.add(told_before(known, self._digests, self._ids))
        self._digests = {}

    async def step(self) -> bool:
        """Read one page of the end, and one of each sweep that is due.

        Returns:
            Whether more is due.

        Raises:
            Fault: the database is away or busy.
            Exception: what ``tell`` raises.
        """
        if self._wants_mark:
            self.settled.mark(await self._states.mark())
            self._wants_mark = False
        more = await self._follow()
        assert self._looked is not None
        now = self._looked[1]
        for sweep in self._sweeps:
            more |= await self._sweep(sweep, now)
        if self.settled.until is not None:
            # While no transaction ends, this time stays, and what remains is read at once.
            quiet = now - self.settled.until > self._last.pause
            more |= await self._sweep(self._last, self.settled.until, at_once=quiet)
        if monotonic() - self._tidied > _TIDY_SECONDS or self._told.count > 1.05 * self._patience.told:
            since = min(self.settled.forgotten.values(), default=now) - self._late
            self._told.tidy(min(since, self._states.time(self._last.after)))
            self._tidied = monotonic()
        return more

    async def _sweep(self, sweep: _Sweep, now: datetime, *, at_once: bool = False) -> bool:
        """Read a page of a sweep if it is due. Returns whether there is more of it.

        Args:
            now: the states' age is that of this time.
            at_once: do without the pause.
        """
        pause = timedelta(0) if at_once else sweep.pause
        if sweep.after >= min(self._front, self._states.key(now - sweep.age - pause)):
            return False
        return (await self._page(sweep.after, min(self._front, self._states.key(now - sweep.age)))).full

    async def _follow(self) -> bool:
        """Read the end of the order. Returns whether there is more of it."""
        ahead = timedelta(seconds=self._patience.ahead)
        page = await self._page(self._after, self._states.key(self._now() + ahead))
        self._window.extend(state.key for state in page.states)
        self._front = page.reaches
        self._reached = min(self._states.time(page.reaches), page.look.now)
        if page.full:
            self._after = page.reaches
            return True
        # Read the last seconds again each time, or fewer if that would be many states.
        self._after = self._sweeps[1].after
        if len(self._window) == self._patience.window:
            self._after = max(self._after, self._window[0])
        self._window.clear()
        return False

    def _now(self) -> datetime:
        """The time by the database's clock. Before the first look it is the cursor's."""
        if self._looked is None:
            return self._reached
        at, now = self._looked
        return now + timedelta(seconds=monotonic() - at)

    async def _page(self, after: Key, before: Key) -> Page:
        page = await self._states.page(after, before, self._patience.page)
        if self._looked is not None and page.look.now < self._looked[1] - _SET_BACK:
            self._turn_back(page.look.now)
        self._looked = monotonic(), page.look.now
        again = self.settled.note(page.look)
        self._wants_mark = self.settled.wants_mark(page.look)
        new = [state for state in page.states if state not in self._told]
        if new:
            await self._tell(sorted(new, key=lambda state: state.instant))
            self._told.add(new)
        self._cover(after, page.reaches, page.look)
        if again is not None:
            self._last.after = min(self._last.after, max(self._begin, self._states.key(again - self._late)))
        return page

    def _turn_back(self, now: datetime) -> None:
        """The database's clock was set back: read from its present time on."""
        log.warning("clock_set_back", now=now)
        for sweep in (*self._sweeps, self._last):
            sweep.after = min(sweep.after, self._states.key(now - sweep.age))
        self._after = self._front = min(self._after, self._sweeps[1].after)

    def _cover(self, after: Key, reaches: Key, look: Look) -> None:
        """Move each sweep past states that were read at its age, by any reading."""
        for sweep in self._sweeps:
            _move(sweep, after, min(reaches, self._states.key(look.now - sweep.age)))
        if self.settled.until is not None:
            _move(self._last, after, min(reaches, self._states.key(self.settled.until - self._late)))


def _move(sweep: _Sweep, after: Key, to: Key) -> None:
    if after <= sweep.after < to:
        sweep.after = to
