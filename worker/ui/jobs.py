"""Work that a page has started: it goes on without the page, and the page shows how far it is."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from worker.observability.redaction import without_secrets

log = structlog.get_logger(__name__)

# Jobs to remember.
MAX_JOBS = 50
# Seconds for which a page waits for a job. Most end sooner.
PATIENCE = 1.0


@dataclass
class Job:
    """One piece of work.

    Attributes:
        title: its task, in a few words.
        back: the page to go on with.
        done, total: how far it is, where that is known.
        lines: its messages.
        shown: its findings, in the form that its page needs.
        error: why it failed, in a line.
        goes_on: where to go as soon as it has succeeded. Empty: its page has something to show.
    """

    id: int
    title: str
    back: str
    done: int = 0
    total: int = 0
    lines: list[str] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)
    error: str | None = None
    goes_on: str = ""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    running: bool = True

    @property
    def page(self) -> str:
        """Its page."""
        return f"/jobs/{self.id}"

    def advance(self, count: int) -> None:
        """Count what is done."""
        self.done += count


class Jobs:
    """The last jobs."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0

    def get(self, number: int) -> Job | None:
        """A job, unless it is forgotten."""
        return self._jobs.get(number)

    async def start(self, title: str, back: str, work: Callable[[Job], Awaitable[None]]) -> Job:
        """Start a job. Returns once it has ended, or after a moment."""
        self._number += 1
        job = self._jobs[self._number] = Job(self._number, title, back)
        for number in [each.id for each in self._jobs.values() if not each.running][:-MAX_JOBS]:
            del self._jobs[number]
        task = asyncio.create_task(_run(job, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait((task,), timeout=PATIENCE)
        return job

    async def close(self) -> None:
        """Cancel what still runs."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


async def _run(job: Job, work: Callable[[Job], Awaitable[None]]) -> None:
    try:
        await work(job)
    except asyncio.CancelledError:
        job.error = "It was interrupted."
        raise
    except Exception as error:  # the edge: the page shows it
        job.error = without_secrets(str(error) or type(error).__name__)
        log.warning("job_failed", job=job.title, error=job.error, exc_info=not str(error))
    finally:
        job.running = False
