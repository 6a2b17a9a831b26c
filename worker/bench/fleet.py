"""The measured worker processes, from start to end. Knows no load."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from worker.bench.load import BenchFailed

T = TypeVar("T")

# Longest wait for all workers to consume, in seconds. After that they wait for something unknown.
START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Running:
    """Running processes.

    Attributes:
        processes: all processes started so far.
        log: the file with their output.
    """

    processes: Sequence[Process]
    log: Path

    def peak_memory(self) -> int:
        """The largest resident memory of a process so far, in bytes. 0 if the system does not
        report it: Linux does.
        """
        status = [Path(f"/proc/{process.pid}/status") for process in self.processes]
        found = [re.search(r"VmHWM:\s+(\d+) kB", path.read_text()) for path in status if path.exists()]
        return max((int(match[1]) * 1024 for match in found if match), default=0)

    async def watch(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something that needs all processes.

        Raises:
            BenchFailed: a process ended meanwhile.
        """
        working = asyncio.create_task(work)
        ends = [asyncio.create_task(process.wait()) for process in self.processes]
        try:
            await asyncio.wait((working, *ends), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise BenchFailed(f"a worker ended: {self.log.read_text()[-2000:]}")
            return working.result()
        finally:
            for task in (working, *ends):
                task.cancel()


@dataclass(frozen=True, slots=True)
class Fleet:
    """Some worker processes on one queue and one database.

    Attributes:
        folder: the folder of their log.
        count: the number of workers.
        command: another program in place of the worker, for comparisons. Its arguments are the
            broker's URL, the database's URL and the queue.
        settings: further environment variables.
    """

    amqp_url: str
    database_url: str
    queue: str
    folder: Path
    count: int = 1
    command: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    @asynccontextmanager
    async def running(self, consumers: Callable[[], Awaitable[int]] | None = None) -> AsyncIterator[Running]:
        """Run the workers within the context. ``consumers`` counts the queue's consumers: with it,
        wait until all workers consume.

        Raises:
            BenchFailed: a worker ended, does not start to consume, or ends with a failure.
        """
        log = self.folder / "workers.log"
        processes: list[Process] = []
        running = Running(processes, log)

        async def consume() -> None:
            while consumers is not None and await consumers() < self.count:
                await asyncio.sleep(0.05)

        try:
            with log.open("ab") as output:
                for _ in range(self.count):
                    processes.append(await self._start(output.fileno()))
            try:
                async with asyncio.timeout(START_SECONDS):
                    await running.watch(consume())
            except TimeoutError:
                raise BenchFailed(f"the workers don't begin: {log.read_text()[-2000:]}") from None
            yield running
        finally:
            for process in processes:
                if process.returncode is None:
                    process.send_signal(signal.SIGTERM)
            codes = [await process.wait() for process in processes]
        if any(codes) and not self.command:
            raise BenchFailed(f"workers ended with {codes}: {log.read_text()[-2000:]}")

    async def _start(self, output: int) -> Process:
        program = [sys.executable, "-m", "worker", "run"]
        if self.command:
            program = [*self.command, self.amqp_url, self.database_url, self.queue]
        environment = {
            **os.environ,
            "WORKER_AMQP_URL": self.amqp_url,
            "WORKER_DATABASE_URL": self.database_url,
            "WORKER_QUEUE": self.queue,
            "WORKER_HTTP_PORT": "0",
            **self.settings,
        }
        return await asyncio.create_subprocess_exec(*program, env=environment, stderr=output)
