"""Worker processes to be measured, from their start to their end; knows no load."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from worker.bench.load import BenchFailed


@dataclass(frozen=True, slots=True)
class Fleet:
    """Some worker processes on one queue and one database.

    Attributes:
        folder: where their log goes.
        count: how many.
        command: another program than the worker, for comparisons; it is given the broker's URL, the database's and the queue.
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
    async def running(self, consumers: Callable[[], Awaitable[int]] | None = None) -> AsyncIterator[list[Process]]:
        """While they run; with ``consumers``, which tells how many consume, it is first waited until all of them do.

        Raises:
            BenchFailed: one of them ended, or ends with a failure.
        """
        log = self.folder / "workers.log"
        processes: list[Process] = []
        try:
            with log.open("ab") as output:
                for _ in range(self.count):
                    processes.append(await self._start(output.fileno()))
            while consumers is not None and await consumers() < self.count:
                if any(process.returncode is not None for process in processes):
                    raise BenchFailed(f"a worker ended: {log.read_text()[-2000:]}")
                await asyncio.sleep(0.05)
            yield processes
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
            "WORKER_LOG_LEVEL": "warning",
            **self.settings,
        }
        return await asyncio.create_subprocess_exec(*program, env=environment, stderr=output)
