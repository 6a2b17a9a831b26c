"""Checks that an SQLite database's open file is still the file at its path.

SQLite goes on writing to a file that was deleted, moved away or replaced, and to such a write-ahead
log. The next process that opens the path finds none of these rows.
"""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.contract.errors import Fault

log = structlog.get_logger(__name__)

# Device and inode.
_Identity = tuple[int, int]

_RESTORE = "Put the open file back, or restart the worker to go on with the file at the path."
# By the table's own order: it reads the end of the table only.
_NEWEST = "SELECT id FROM flow_run ORDER BY rowid DESC LIMIT 1"


class ConnectionLost(Fault):
    """This connection can't be used any longer. Another one may work."""


class DatabaseFile:
    """Compares the open file with the path. It asks the file system only: to open the file without
    SQLite would end SQLite's locks ("How To Corrupt An SQLite Database File", 2.2).

    Only the first connection of the engine may make the file. A later one would make an empty
    database, without the runs that were answered.

    Args:
        engine: has one connection at a time.
        path: as given to SQLite.
    """

    def __init__(self, engine: AsyncEngine, path: str) -> None:
        self._path = path
        self._open: _Identity | None = None
        # The write-ahead log and its index, once they exist. SQLite follows symbolic links.
        self._companions: dict[str, _Identity] = {}
        self._places: tuple[str, ...] = ()
        # The newest run of the open file. It is noted once the path has another file, or none.
        self._newest: str | None = None
        self._filled = self._emptied = False
        self._told = ""
        event.listen(engine.sync_engine, "do_connect", self._connecting)
        event.listen(engine.sync_engine, "connect", self._connected)

    def _connecting(self, _dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        """Keep SQLite from making a file when it connects again."""
        if self._open is None:
            return
        if problem := self._moved():
            if not self._is_copy():
                raise self._fault(problem)
            self._take()
        arguments[0] = _existing(self._path)
        options["uri"] = True

    def _connected(self, *_: object) -> None:
        self._companions.clear()
        if self._open is None:
            self._take()

    def check(self) -> None:
        """Raise Fault unless the open file and its log are at their paths."""
        if problem := self._moved() or self._lost_companion():
            raise self._fault(problem)
        if self._told:
            self._told, self._newest = "", None
            log.info("database_file_is_back", file=self._path)

    async def check_before(self, server: Any) -> None:
        """The same check before a connection is used. On a problem it saves the log first.

        Args:
            server: aiosqlite's connection.

        Raises:
            Fault: as above.
            ConnectionLost: this connection serves no more; a new one may.
        """
        moved = self._moved()
        if not moved and not self._lost_companion():
            if self._told:
                self.check()
            return
        saved = await self._save(server)
        if not moved:
            fault = self._fault(self._lost_companion())
            # The log can't be saved while another connection reads, so keep this one.
            raise ConnectionLost(str(fault)) if saved else fault
        if self._is_copy():
            self._take()
            raise ConnectionLost(f"SQLite: {self._path} is another file now, with the same runs")
        raise self._fault(moved)

    async def _save(self, server: Any) -> bool:
        """Note the newest run, to recognise a copy. Write the log into the open file, which then is
        complete if it is moved back. Returns true if the log was written.
        """
        if self._emptied:
            return False
        with suppress(sqlite3.Error):
            if self._newest is None:
                newest = await server.execute_fetchall(_NEWEST)
                self._newest = str(newest[0][0]) if newest else ""
            ((busy, *_),) = await server.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
            return not busy
        return False

    def _moved(self) -> str:
        """Describe the problem at the path. Empty if there is none."""
        try:
            there = os.stat(self._path)
        except OSError as error:
            return f"the file {self._path} is gone ({error.strerror}). {_RESTORE}"
        if (there.st_dev, there.st_ino) != self._open:
            return f"another file than the open one is at {self._path}. {_RESTORE}"
        # cp replaces the contents of the same file, while the connection has cached its old pages.
        self._emptied = self._emptied or (self._filled and not there.st_size)
        self._filled = self._filled or there.st_size > 0
        if self._emptied:
            return f"the file {self._path} was emptied. Stop the workers, restore it, and start them."
        return ""

    def _lost_companion(self) -> str:
        """Describe a removed or replaced log or index. Empty if there is none. Both appear at the
        first read, and SQLite removes neither while a connection is open.
        """
        for path in self._places:
            try:
                there = os.stat(path)
            except OSError:
                found = None
            else:
                found = (there.st_dev, there.st_ino)
            known = self._companions.get(path)
            if known is None:
                if found is not None:
                    self._companions[path] = found
            elif found != known:
                return f"{path} was removed or replaced while the database was open"
        return ""

    def _is_copy(self) -> bool:
        """True if the file at the path has the newest run of the open one, as a restored backup or
        a volume that was mounted again. If the open file has no run, any database will do.
        """
        if self._newest is None:
            return False
        try:
            with closing(sqlite3.connect(_existing(self._path), uri=True, timeout=1)) as there:
                found = there.execute("SELECT count(*) FROM flow_run WHERE id = ?", (self._newest,))
                return bool(found.fetchone()[0]) or not self._newest
        except sqlite3.Error:
            return False

    def _take(self) -> None:
        there = os.stat(self._path)
        self._open, self._newest = (there.st_dev, there.st_ino), None
        self._filled = self._emptied = False
        self._companions.clear()
        file = os.path.realpath(self._path)
        self._places = (f"{file}-wal", f"{file}-shm")

    def _fault(self, problem: str) -> Fault:
        if problem != self._told:
            self._told = problem
            log.error("database_file", error=problem)
        return Fault(f"SQLite: {problem}")


def _existing(path: str) -> str:
    """A URI with which SQLite opens the file, but does not make it."""
    return f"{Path(path).absolute().as_uri()}?mode=rw"
