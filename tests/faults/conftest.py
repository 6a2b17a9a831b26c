"""Servers of the fault suite's own, since it stops them, and workers under a supervisor, as they run in production."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.dev.postgresql import PostgreSQL
from deploy.dev.rabbitmq import RabbitMQ
from tests.conftest import ROOT, WorkerProcess
from tests.faults.load import Load


@pytest.fixture(scope="module")
def broker() -> Iterator[RabbitMQ]:
    with RabbitMQ() as node:
        yield node


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgreSQL]:
    with PostgreSQL() as cluster:
        yield cluster


class Supervisor:
    """Keeps workers running: starts one again when it dies, which counts unless the test killed it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._workers: list[WorkerProcess] = []
        self._expected: set[int] = set()
        self.died: list[str] = []
        self._task: asyncio.Task[None] | None = None
        self._count = 0

    def start(self, count: int = 1) -> None:
        for _ in range(count):
            self._workers.append(self._new())
        for worker in self._workers:
            worker.wait_until_logged("serving")
        self._task = self._task or asyncio.create_task(self._supervise())

    def start_crashing(self, seam: str) -> WorkerProcess:
        """A worker that kills itself at a seam, once; it is started again by itself as a sound one."""
        worker = self._new([sys.executable, "-m", "tests.faults.crashing_worker", seam, str(self._folder / "crashed")])
        self._expected.add(worker.process.pid)
        self._workers.append(worker)
        self._task = self._task or asyncio.create_task(self._supervise())
        return worker

    @property
    def workers(self) -> list[WorkerProcess]:
        return list(self._workers)

    def kill(self, index: int) -> None:
        """SIGKILL; the supervisor starts another."""
        worker = self._workers[index % len(self._workers)]
        self._expected.add(worker.process.pid)
        worker.process.kill()

    async def restart(self, index: int) -> int:
        """SIGTERM and a new one in its place; returns the exit code."""
        worker = self._workers[index % len(self._workers)]
        self._expected.add(worker.process.pid)
        # Before that it is Python that starts, and has no handler for a signal yet.
        await asyncio.to_thread(worker.wait_until_logged, "serving")
        return await asyncio.to_thread(worker.terminate)

    async def stop(self) -> list[int]:
        """SIGTERM to all; returns their exit codes."""
        if self._task:
            self._task.cancel()
        for worker in self._workers:
            await asyncio.to_thread(worker.wait_until_logged, "serving")
        return [await asyncio.to_thread(worker.terminate) for worker in self._workers if worker.process.poll() is None]

    def kill_all(self) -> None:
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.kill()

    def logged(self, event: str) -> int:
        """In how many lines of all logs this stands."""
        return sum(log.read_text().count(event) for log in self._folder.glob("worker-*.log"))

    async def _supervise(self) -> None:
        while True:
            for index, worker in enumerate(self._workers):
                if worker.process.poll() is not None:
                    if worker.process.pid not in self._expected:
                        self.died.append(worker.output[-2000:])
                    self._workers[index] = self._new()
            await asyncio.sleep(0.1)

    def _new(self, command: list[str] | None = None) -> WorkerProcess:
        self._count += 1
        log = self._folder / f"worker-{self._count}.log"
        if command is None:
            return WorkerProcess(log, self._environment)
        worker = WorkerProcess.__new__(WorkerProcess)
        worker.log = log
        with log.open("wb") as output:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **self._environment}
            worker.process = subprocess.Popen(command, cwd=log.parent, env=environment, stdout=output, stderr=output)
        return worker


@pytest.fixture
async def supervisor(broker: RabbitMQ, cluster: PostgreSQL, queue: str, tmp_path: Path) -> AsyncIterator[Any]:
    """Makes supervisors of workers on a database; all their processes end with the test."""
    made: list[Supervisor] = []

    def make(database_url: str, **settings: Any) -> Supervisor:
        environment = {
            "WORKER_AMQP_URL": broker.url,
            "WORKER_DATABASE_URL": database_url,
            "WORKER_QUEUE": queue,
            "WORKER_MIGRATE": "true",
            "WORKER_HTTP_PORT": "0",
            **{f"WORKER_{name.upper()}": str(value) for name, value in settings.items()},
        }
        made.append(Supervisor(tmp_path, environment))
        return made[-1]

    yield make
    for each in made:
        if each._task:
            each._task.cancel()
        each.kill_all()


@pytest.fixture
async def load(broker: RabbitMQ, queue: str, request: pytest.FixtureRequest) -> AsyncIterator[Load]:
    seed = int(os.environ.get("WORKER_TEST_SEED", "1"))
    async with Load(broker.url, queue, seed=seed) as load:
        yield load
