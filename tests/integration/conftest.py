"""A session on this test's queue, and a shared worker; each test starts with an empty dead-letter
queue.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from yarl import URL

from tests.support.command import Done, command
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess
from worker.amqp.transport import Connection
from worker.broker.session import Session
from worker.broker.topology import Topology


@pytest.fixture
async def connection(amqp_url: str) -> AsyncIterator[Connection]:
    connection = await aio_pika.connect(amqp_url, connection_class=Connection)
    yield connection
    await connection.close()


@pytest.fixture
async def session(amqp_url: str, queue: str) -> AsyncIterator[Session]:
    session = await Session.open(amqp_url, Topology(queue), name="test")
    yield session
    await session.close()


@pytest.fixture(scope="module")
def running_worker(
    rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("worker")
    queue = f"shared-{uuid4().hex[:8]}.create"
    worker = WorkerProcess(
        folder / "worker.log",
        {
            "WORKER_AMQP_URL": rabbitmq.url,
            "WORKER_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/flow_runs.db",
            "WORKER_QUEUE": queue,
            "WORKER_HTTP_PORT": "0",
            "WORKER_MAX_BODY_BYTES": "10000",
        },
    )
    try:
        worker.wait_until_logged("serving")
        yield queue, worker.log
        assert worker.terminate() == 0, worker.output
    finally:
        worker.kill()


@pytest.fixture
async def shared_worker(running_worker: tuple[str, Path], amqp_url: str) -> AsyncIterator[Producer]:
    """A producer at a worker on SQLite with a body limit of 10,000 bytes."""
    queue, _ = running_worker
    async with Producer(amqp_url, queue) as producer:
        yield producer


@pytest.fixture
def dead_letters(amqp_url: str, queue: str) -> Callable[..., Any]:
    """Runs ``dead-letters`` with these arguments."""

    async def run(*arguments: str, **more: Any) -> Done:
        return await command("dead-letters", *arguments, amqp_url=amqp_url, queue=queue, **more)

    return run


@pytest.fixture
async def other_user(rabbitmq: RabbitMQ, amqp_url: str) -> AsyncIterator[str]:
    """The URL of a broker user that may publish, and is no worker."""
    user = f"other-{uuid4().hex[:8]}"
    await asyncio.to_thread(rabbitmq.ctl, "add_user", user, "password")
    await asyncio.to_thread(rabbitmq.ctl, "set_permissions", user, "^$", r"^amq\.default$", "^$")
    yield str(URL(amqp_url).with_user(user).with_password("password"))
    await asyncio.to_thread(rabbitmq.ctl, "delete_user", user)
