"""Logs the stored runs: at most one line a second, as a busy worker stores hundreds of batches in
that time.
"""

import asyncio
from collections import Counter

import structlog

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 1.0


class StoredLog:
    """Logs a batch at once, then all batches of the next second together."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._counts: Counter[str] = Counter()
        self._slowest = 0.0

    def add(self, seconds: float, **counts: int) -> None:
        """Add one batch: its seconds in the database, and its counts."""
        self._counts.update(**counts, batches=1)
        self._slowest = max(self._slowest, seconds)
        if self._timer is None:
            self._tell()

    def close(self) -> None:
        """Log the batches not logged yet. Nothing may be added afterwards."""
        if self._timer is not None:
            self._timer.cancel()
            self._log()

    def _tell(self) -> None:
        self._timer = None
        if self._log():
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_SECONDS, self._tell)

    def _log(self) -> bool:
        if not self._counts:
            return False
        log.info("stored", **self._counts, slowest_ms=round(self._slowest * 1000, 1))
        self._counts.clear()
        self._slowest = 0.0
        return True
