"""Scenes for faults: servers that the faults stop, workers behind a proxy, and producers."""

import asyncio
import os
import random
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.faults.faults import Scene
from tests.faults.load import Load
from tests.support.postgresql import PostgreSQL
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.supervisor import Supervisor

# Seconds. A silent connection counts as lost after two of these at the broker, three at the worker.
HEARTBEAT = 2


@contextmanager
def small_disk(size: str) -> Iterator[Path | None]:
    """A file system in memory, or None if mounting is not permitted."""
    # Not in pytest's folder, which PostgreSQL's user can't enter.
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    folder.chmod(0o755)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        folder.rmdir()
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@asynccontextmanager
async def open_scene(
    broker: RabbitMQ,
    cluster: PostgreSQL,
    database: str,
    folder: Path,
    disk: Path | None,
    *,
    seed: int,
    haste: float = 1.0,
) -> AsyncIterator[Scene]:
    """A scene with a database of this kind (``postgresql`` or ``sqlite``), on the small disk if
    there is one.
    """
    queue = f"faults-{uuid4().hex[:8]}.create"
    name = f"faults-{uuid4().hex[:8]}"
    where = (disk or folder) / name
    where.mkdir()
    if database == "postgresql":
        url = cluster.create_database(where if disk else None)
    else:
        url = f"sqlite+aiosqlite:///{where}/flow_runs.db"
    user = f"workers-{name}"
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(broker.ctl, "add_user", user, user)
        await asyncio.to_thread(broker.ctl, "set_permissions", user, ".*", ".*", ".*")
        to_broker = await stack.enter_async_context(Proxy([broker.port]))
        to_database = await stack.enter_async_context(Proxy([cluster.port]))
        load = await stack.enter_async_context(Load(broker.url, queue, seed=seed))
        environment = {
            "WORKER_AMQP_URL": f"amqp://{user}:{user}@127.0.0.1:{to_broker.port}/?heartbeat={HEARTBEAT}",
            "WORKER_DATABASE_URL": url.replace(f":{cluster.port}/", f":{to_database.port}/"),
            "WORKER_QUEUE": queue,
            "WORKER_MIGRATE": "true",
            "WORKER_HTTP_PORT": "0",
            "WORKER_SHUTDOWN_TIMEOUT": "3",
        }
        workers = Supervisor(folder, environment)
        stack.callback(workers.kill_all)
        yield Scene(
            broker,
            cluster,
            url,
            queue,
            user,
            workers,
            load,
            to_broker,
            to_database,
            disk,
            random.Random(seed),
            haste,
        )


@pytest.fixture(scope="module")
def broker() -> Iterator[RabbitMQ]:
    with RabbitMQ() as node:
        yield node


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgreSQL]:
    with PostgreSQL() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def disk() -> Iterator[Path | None]:
    with small_disk("128m") as disk:
        yield disk


@pytest.fixture
async def scene(
    request: pytest.FixtureRequest, broker: RabbitMQ, cluster: PostgreSQL, disk: Path | None, tmp_path: Path
) -> AsyncIterator[Any]:
    """A scene. The parameter is the kind of database, and whether to use a small disk if it can be
    mounted.
    """
    database, on_small_disk = getattr(request, "param", ("postgresql", False))
    seed = int(os.environ.get("WORKER_TEST_SEED", "1"))
    async with open_scene(
        broker, cluster, database, tmp_path, disk if on_small_disk else None, seed=seed, haste=2.5
    ) as scene:
        yield scene
