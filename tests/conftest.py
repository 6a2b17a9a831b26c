"""The servers of the tests: a private RabbitMQ node and a private PostgreSQL cluster, both real,
stopped at the end.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.memory_limit import limited
from tests.support.postgresql import PostgreSQL
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess

# Memory limit of the container in MiB.
MANIFESTS_LIMIT = 512
# Folders and files of tests, the slowest first.
LONGEST = ("engine", "conformance", "test_faults.py", "test_among_good.py", "faults", "deploy")
# Files whose tests take minutes, on servers of their own.
SPLIT_BY_DATABASE = ("tests/faults/test_faults.py", "tests/faults/test_among_good.py")
DATABASE = re.compile(r"[\[ -](sqlite|postgresql|prefect)( \d of \d)?(?=[\]-])")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest tests first, so that no process is left with them at the end."""
    items.sort(
        key=lambda item: next((n for n, name in enumerate(LONGEST) if name in item.path.parts), len(LONGEST))
    )


def together(nodeid: str) -> str:
    """The group of a test. A group goes to one process: it is a file because of its servers, or the
    tests that share a Prefect server or the container engine.
    """
    file = nodeid.partition("::")[0]
    folder, _, name = file.rpartition("/")
    found = DATABASE.search(nodeid)
    if file in SPLIT_BY_DATABASE:
        return f"{file} {found[0][1:] if found else 'any'}"
    if folder == "tests/deploy/engine":
        return folder
    if folder != "tests/conformance" or name in ("test_checks.py", "test_older_prefect.py"):
        return file
    if name in ("test_conformance.py", "test_labels.py"):
        return f"{folder} answers"
    # In two groups, as all of them on one database take minutes.
    part = "longest" if name in ("test_deployments.py", "test_odd_runs.py", "test_memory.py") else "others"
    return f"{folder} {part} {'sqlite' if found and found[1] == 'sqlite' else 'postgresql'}"


class Together(LoadScopeScheduling):
    """Groups tests for several processes by :func:`together`."""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)

    def _reschedule(self, node: Any) -> None:
        """Give a process its next group only when it needs one. xdist would assign it while three
        tests are left, which may take minutes, and another process may be free sooner.
        """
        if self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """xdist's own marks have no effect with pytest 9.2, which keeps names elsewhere."""
    return Together(config, log)


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    with RabbitMQ() as node:
        yield node


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    with PostgreSQL() as cluster:
        yield cluster


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ) -> str:
    return rabbitmq.url


@pytest.fixture
def queue() -> str:
    """A request queue for this test; the rest of the topology follows from its name."""
    return f"test-{uuid4().hex[:8]}.create"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/flow_runs.db"


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> str:
    return postgresql.create_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database, on PostgreSQL and on SQLite."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def start_worker(amqp_url: str, queue: str, tmp_path: Path) -> Iterator[StartWorker]:
    """Start worker processes on this test's queue; kill those still running at the end."""
    started: list[WorkerProcess] = []

    def start(database_url: str, *, wait: bool = True, **settings: Any) -> WorkerProcess:
        environment = {
            "WORKER_AMQP_URL": amqp_url,
            "WORKER_DATABASE_URL": database_url,
            "WORKER_QUEUE": queue,
            "WORKER_MIGRATE": "true",
            "WORKER_HTTP_PORT": "0",
            **{f"WORKER_{name.upper()}": str(value) for name, value in settings.items()},
        }
        worker = WorkerProcess(tmp_path / f"worker-{len(started)}.log", environment)
        started.append(worker)
        if wait:
            worker.wait_until_logged("serving")
        return worker

    yield start
    for worker in started:
        if worker.process.poll() is None:
            worker.kill()


@pytest.fixture
async def producer(amqp_url: str, queue: str) -> AsyncIterator[Producer]:
    """A producer in plain AMQP with its own reply queue, by a library that the worker lacks."""
    async with Producer(amqp_url, queue) as producer:
        yield producer


@pytest.fixture
def worker_in_limit() -> Iterator[Sequence[str]]:
    """The command of a worker within the manifests' memory limit."""
    with ExitStack() as stack:
        try:
            command = stack.enter_context(limited(MANIFESTS_LIMIT))
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made here: {error}")
        yield command
