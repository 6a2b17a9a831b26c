"""Decides up to which time all states are visible. The caller looks at the database.

A state's time is set before its transaction commits. So a state of ten o'clock may become visible
at eleven, if its transaction was open for that long.
"""

from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from worker.store.states import Look, Mark

log = structlog.get_logger(__name__)


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

    def wants_mark(self, look: Look) -> bool:
        """Whether the transactions should be divided after this look."""

    def mark(self, mark: Mark) -> None:
        """Note where they were divided."""


class Transactions:
    """PostgreSQL: a transaction gets an id as it writes for the first time, and a look has the ids
    of those that are open.

    But it has only ids below the last one that has ended. A mark takes an id, and ends. All that
    began to write before it have lower ids, and are seen from then on. So a mark's time counts once
    no lower id is open.

    Args:
        since: no transaction before this time matters.
        forgotten: as an earlier teller knew them.
        patience: seconds after which a transaction is forgotten.
        every: seconds between two marks, while transactions end.
    """

    def __init__(
        self, since: datetime, forgotten: Mapping[int, datetime], patience: float, every: float
    ) -> None:
        self.until: datetime | None = None
        self.forgotten = dict(forgotten)
        self._patience = timedelta(seconds=patience)
        self._every = timedelta(seconds=every)
        # When each open transaction began to write, at the earliest.
        self._began = dict(forgotten)
        # The marks that don't count yet, after the last one that does.
        self._marks: deque[Mark] = deque((Mark(since, 0),))
        # The first look after the last mark.
        self._marked: Look | None = None

    def note(self, look: Look) -> datetime | None:
        self._marked = self._marked or look
        ended = self._began.keys() - look.running
        again = [self.forgotten.pop(each) for each in ended if each in self.forgotten]
        for each in ended:
            del self._began[each]
        for each in look.running - self._began.keys():
            self._began[each] = next(mark.now for mark in reversed(self._marks) if mark.id < each)
        for each, began in self._began.items():
            if look.now - began > self._patience and each not in self.forgotten:
                self.forgotten[each] = began
                log.warning("transaction_stays_open", id=each, since=began)
        oldest = min(look.running - self.forgotten.keys(), default=look.next)
        while len(self._marks) > 1 and self._marks[1].id < oldest:
            self._marks.popleft()
            self.until = self._marks[0].now
        return min(again, default=None)

    def wants_mark(self, look: Look) -> bool:
        if self._marked is None or look.now - self._marks[-1].now < self._every:
            return False
        # Else no transaction has ended since.
        return look.next != self._marked.next or look.running != self._marked.running

    def mark(self, mark: Mark) -> None:
        self._marks.append(mark)
        self._marked = None


class Commits:
    """SQLite: one transaction writes at a time, and each look has a version that changes with each
    commit.

    A transaction that writes now, or later, got the file's lock after the last commit. That commit
    came after the last look with the version before.
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

    def wants_mark(self, look: Look) -> bool:
        return False

    def mark(self, mark: Mark) -> None:
        """There are no marks."""
