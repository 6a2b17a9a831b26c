"""Workers under a supervisor, as they run in production."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from tests.support.worker_process import WorkerProcess


class Supervisor:
    """Keeps workers running. It restarts a worker that dies, and counts the death unless the kill
    was intended.

    Attributes:
        died: the ends of the logs of workers with an unintended death.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._workers: list[WorkerProcess] = []
        self._crashing: list[WorkerProcess] = []
        self._expected: set[int] = set()
        self._numbers = count(1)
        self._task: asyncio.Task[None] | None = None
        self.died: list[str] = []

    async def start(self, count: int) -> None:
        """Start workers, and wait until they serve."""
        self._workers += [self._new() for _ in range(count)]
        for worker in self._workers:
            await asyncio.to_thread(worker.wait_until_logged, "serving")
        self._task = asyncio.create_task(self._supervise())

    def start_crashing(self, seam: str) -> WorkerProcess:
        """Start one more worker, which kills itself at a seam."""
        marker = self._folder / f"crashed-{next(self._numbers)}"
        worker = self._new([sys.executable, "-m", "tests.faults.crashing_worker", seam, str(marker)])
        self._crashing.append(worker)
        return worker

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [worker.process.pid for worker in self._workers if worker.process.poll() is None]

    def kill(self, index: int) -> None:
        """SIGKILL; another is started."""
        worker = self._workers[index % len(self._workers)]
        self._expected.add(worker.process.pid)
        worker.process.kill()

    async def kill_serving(self, index: int) -> None:
        """SIGKILL, once it serves; another is started."""
        await self._serving(index % len(self._workers))
        self.kill(index)

    async def restart(self, index: int) -> int:
        """SIGTERM, then start a replacement; returns the exit code."""
        worker = await self._serving(index % len(self._workers))
        self._expected.add(worker.process.pid)
        return await asyncio.to_thread(worker.terminate)

    @asynccontextmanager
    async def frozen(self, index: int) -> AsyncIterator[None]:
        """Freeze a worker within, as a machine that gives it no CPU."""
        worker = self._workers[index % len(self._workers)]
        worker.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            worker.process.send_signal(signal.SIGCONT)

    async def stop(self) -> list[int]:
        """SIGTERM to all; returns their exit codes."""
        for index in range(len(self._workers)):
            await self._serving(index)
        self._stop_supervising()
        return [
            await asyncio.to_thread(worker.terminate)
            for worker in self._workers
            if worker.process.poll() is None
        ]

    def kill_all(self) -> None:
        """End whatever still runs."""
        self._stop_supervising()
        for worker in (*self._workers, *self._crashing):
            if worker.process.poll() is None:
                worker.kill()

    def logged(self, event: str) -> int:
        """The number of lines with this event in all logs."""
        return sum(log.read_text().count(event) for log in self._folder.glob("worker-*.log"))

    async def all_serve(self) -> None:
        """Wait until each worker has a session."""
        async with asyncio.timeout(300):
            while not all(_serves(worker.output) for worker in self._workers):
                await asyncio.sleep(0.1)

    def last_lines(self, count: int = 15) -> str:
        """The ends of all logs, the newest worker's last."""
        logs = sorted(self._folder.glob("worker-*.log"), key=lambda log: log.stat().st_ctime)
        return "\n".join(f"{log.name}:\n" + "\n".join(log.read_text().splitlines()[-count:]) for log in logs)

    async def _serving(self, index: int) -> WorkerProcess:
        """The worker at this place, or its replacement, once it serves. Before that, Python may
        still be starting, without signal handlers.
        """
        async with asyncio.timeout(300):
            while "serving" not in self._workers[index].output:
                await asyncio.sleep(0.05)
        return self._workers[index]

    def _stop_supervising(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _supervise(self) -> None:
        while True:
            for index, worker in enumerate(self._workers):
                if worker.process.poll() is not None:
                    if worker.process.pid not in self._expected and not _refused_at_start(worker):
                        self.died.append(worker.output[-2000:])
                    self._workers[index] = self._new()
            await asyncio.sleep(0.1)

    def _new(self, command: Sequence[str] | None = None) -> WorkerProcess:
        log = self._folder / f"worker-{next(self._numbers)}.log"
        return WorkerProcess(log, self._environment, command)


def _refused_at_start(worker: WorkerProcess) -> bool:
    """Whether it ended because the broker never let it in, which is right. A worker that was let in
    before waits.
    """
    return (
        worker.process.returncode == 1
        and "refuses" in worker.output[-2000:]
        and not any(event in worker.output for event in ("session_lost", "broker_away", "stored"))
    )


def _serves(log: str) -> bool:
    """Whether the last session event in a worker's log is that it serves."""
    return log.rfind("serving") > max(
        map(log.rfind, ("session_lost", "broker_away", "deliveries_handed_back"))
    )


def resident(pid: int) -> int:
    """A process's resident memory in bytes; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
