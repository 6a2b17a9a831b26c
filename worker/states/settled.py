"""Decides up to which time all states are visible. Pure: the caller looks at the database.

A state's time is set before its transaction commits. So a state of ten o'clock may become visible
at eleven, if its transaction was open for that long.
"""

from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Protocol

from worker.store.states import Look


class Settled(Protocol):
    """Follows the database's transactions.

    Attributes:
        until: each transaction that began to write before this time has ended. None: unknown yet.
        forgotten: transactions that are open for too long to wait for them, by their ids, with the
            time since which they may have written. They don't count for ``until``.
    """

    until: datetime | None
    forgotten: dict[int, datetime]

    def note(self, look: Look) -> datetime | None:
        """Note a look at the database.

        Returns:
            The time since which forgotten transactions that have ended now may have written. None
            if there are none.
        """


class Transactions:
    """PostgreSQL: each look has the ids of the transactions that have written something.

    A look's time counts once all of its transactions have ended. A transaction gets its id as it
    writes for the first time.

    Args:
        since: no transaction before this time matters.
        forgotten: as an earlier teller knew them.
        patience: seconds after which a transaction is forgotten.
        every: seconds between two looks that are kept.
    """

    def __init__(
        self, since: datetime, forgotten: Mapping[int, datetime], patience: float, every: float
    ) -> None:
        self.until: datetime | None = None
        self.forgotten = dict(forgotten)
        self._patience = timedelta(seconds=patience)
        self._every = timedelta(seconds=every)
        self._last = since
        # When each running transaction began at the earliest.
        self._began = dict(forgotten)
        self._looks: deque[Look] = deque()

    def note(self, look: Look) -> datetime | None:
        ended = self._began.keys() - look.running
        again = [self.forgotten.pop(each) for each in ended if each in self.forgotten]
        for each in ended:
            del self._began[each]
        for each in look.running - self._began.keys():
            self._began[each] = self._last
        for each, began in self._began.items():
            if look.now - began > self._patience:
                self.forgotten.setdefault(each, began)
        if not self._looks or look.now - self._looks[-1].now >= self._every:
            self._looks.append(look)
        waited_for = look.running - self.forgotten.keys()
        while self._looks and not self._looks[0].running & waited_for:
            self.until = self._looks.popleft().now
        self._last = look.now
        return min(again, default=None)


class Commits:
    """SQLite: one transaction writes at a time, and each look has a version that changes with each
    commit.

    Who writes now, or later, got the file's lock after the last commit. That was after the last
    look with the version before.
    """

    def __init__(self) -> None:
        self.until: datetime | None = None
        self.forgotten: dict[int, datetime] = {}
        self._last: Look | None = None

    def note(self, look: Look) -> datetime | None:
        if self._last is not None and look.version != self._last.version:
            self.until = self._last.now
        self._last = look
        return None
