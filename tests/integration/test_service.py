"""The worker's life, within this process: how it starts, waits and leaves."""

import asyncio
from typing import Any

import pytest

from tests.support.database import fetch_runs
from tests.support.postgresql import PostgreSQL
from tests.support.processes import free_ports
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from worker.broker.connection import BrokerRefused
from worker.broker.session import Session
from worker.broker.topology import Topology, TopologyMismatch
from worker.observability.metrics import readiness
from worker.service import Service
from worker.settings import Settings
from worker.store import StoreError

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


def service(amqp_url: str, database_url: str, queue: str, **settings: Any) -> Service:
    return Service(
        Settings(amqp_url=amqp_url, database_url=database_url, queue=queue, http_port=0, **settings)
    )


async def until(condition: Any, running: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(180):
        while not condition():
            assert not running.done(), running
            await asyncio.sleep(0.02)


async def left(running: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(180):
        await running


async def test_it_serves_until_it_is_stopped_and_finishes_what_it_has(
    amqp_url: str, sqlite_url: str, queue: str, producer: Producer
) -> None:
    worker = service(amqp_url, sqlite_url, queue)
    running = asyncio.create_task(worker.run())
    await until(lambda: readiness.broker is None, running)
    ids = [await producer.publish({"flow_id": FLOW_ID, "name": f"run-{n}"}) for n in range(200)]
    await until(lambda: producer.replies, running)
    worker.stop("asked to by the test")
    worker.stop("and again")
    await left(running)
    answered = sum(bool(producer.replies[each]) for each in ids)
    assert await producer.depth() == 200 - answered
    assert len(await fetch_runs(sqlite_url)) == answered
    assert readiness.broker is not None


async def test_it_waits_for_a_broker_that_is_away_and_leaves_at_once_when_it_is_stopped(
    sqlite_url: str, queue: str
) -> None:
    (port,) = free_ports(1)
    worker = service(f"amqp://127.0.0.1:{port}", sqlite_url, queue)
    running = asyncio.create_task(worker.run())
    await until(lambda: str(port) in str(readiness.broker), running)
    worker.stop()
    await left(running)


async def test_it_waits_for_a_database_that_is_away_and_leaves_at_once_when_it_is_stopped(
    amqp_url: str, queue: str
) -> None:
    (port,) = free_ports(1)
    worker = service(amqp_url, f"postgresql+asyncpg://u@127.0.0.1:{port}/d", queue)
    running = asyncio.create_task(worker.run())
    await until(lambda: readiness.database not in (None, "not connected yet"), running)
    worker.stop()
    await left(running)


async def test_a_broker_that_refuses_at_the_start_ends_it_with_the_reason(
    rabbitmq: RabbitMQ, sqlite_url: str, queue: str
) -> None:
    wrong = service(f"amqp://guest:wrong@127.0.0.1:{rabbitmq.port}/", sqlite_url, queue)
    with pytest.raises(BrokerRefused, match="refuses the login"):
        await wrong.run()
    user = f"user-{queue}"
    rabbitmq.ctl("add_user", user, "secret")
    await (await Session.open(rabbitmq.url, Topology(queue), name="test")).close()
    # It may consume, not publish: it fails before it stores a request that it can't answer.
    rabbitmq.ctl("set_permissions", user, ".*", r"^(?!amq\.default$).*", ".*")
    limited = service(f"amqp://{user}:secret@127.0.0.1:{rabbitmq.port}/", sqlite_url, queue)
    async with Producer(rabbitmq.url, queue) as producer:
        await producer.publish({"flow_id": FLOW_ID})
        with pytest.raises(BrokerRefused, match=r"amq\.default"):
            await limited.run()
    assert await fetch_runs(sqlite_url) == []
    rabbitmq.ctl("delete_user", user)


async def test_what_stands_otherwise_ends_it_with_the_reason(
    amqp_url: str, sqlite_url: str, queue: str, producer: Producer
) -> None:
    await producer.channel.declare_queue(queue, durable=True)
    with pytest.raises(TopologyMismatch, match="other properties"):
        await service(amqp_url, sqlite_url, queue).run()


async def test_a_database_that_is_not_as_it_has_to_be_ends_it_with_the_reason(
    amqp_url: str, postgresql: PostgreSQL, queue: str
) -> None:
    with pytest.raises(StoreError):
        await service(amqp_url, postgresql.create_database(), queue, migrate=False).run()


async def test_a_session_that_is_lost_is_followed_by_another(
    rabbitmq: RabbitMQ, sqlite_url: str, queue: str
) -> None:
    """Each time it gives its reason."""
    worker = service(rabbitmq.url, sqlite_url, queue)
    running = asyncio.create_task(worker.run())
    for number in range(3):
        await until(lambda: readiness.broker is None, running)
        closing = asyncio.create_task(
            asyncio.to_thread(rabbitmq.ctl, "close_all_connections", f"by the test, {number}")
        )
        await until(lambda: readiness.broker is not None, running)
        assert "CONNECTION_FORCED" in str(readiness.broker)
        await closing
    await until(lambda: readiness.broker is None, running)
    worker.stop()
    await left(running)
