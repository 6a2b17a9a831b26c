"""Faults while producers keep publishing; afterwards nothing is lost, nothing is there twice, and nobody died unasked."""

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from deploy.dev.postgresql import PostgreSQL
from deploy.dev.rabbitmq import RabbitMQ
from tests.faults.conftest import Supervisor
from tests.faults.crashing_worker import SEAMS
from tests.faults.load import Load

Make = Callable[..., Supervisor]


async def check(load: Load, supervisor: Supervisor, database_url: str, *, seconds: float = 60.0) -> None:
    """The end of every fault: heal, settle, count."""
    await asyncio.sleep(0.5)
    await load.stop()
    verdict = await load.verdict(database_url, seconds)
    assert verdict.published > 50, verdict
    assert (verdict.lost, verdict.doubled) == (0, 0), verdict
    assert supervisor.died == []
    codes = await supervisor.stop()
    assert set(codes) == {0}
    print(verdict)


async def with_fault(
    load: Load, supervisor: Supervisor, url: str, fault: Callable[[], Awaitable[Any]], *, workers: int = 2
) -> None:
    supervisor.start(workers)
    load.start()
    await asyncio.sleep(0.5)
    await fault()
    await check(load, supervisor, url)


@pytest.mark.parametrize("seam", SEAMS)
async def test_killed_at_a_seam(load: Load, supervisor: Make, cluster: PostgreSQL, seam: str) -> None:
    url = cluster.create_database()
    workers = supervisor(url)
    worker = workers.start_crashing(seam)
    worker.wait_until_logged("serving")
    load.start()
    await asyncio.to_thread(worker.process.wait, 20)
    await check(load, workers, url)


@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
async def test_killed_at_random_moments(
    load: Load, supervisor: Make, cluster: PostgreSQL, sqlite_url: str, database: str
) -> None:
    url = cluster.create_database() if database == "postgresql" else sqlite_url
    workers = supervisor(url)
    moments = random.Random(1)

    async def kill() -> None:
        for index in range(4):
            await asyncio.sleep(moments.uniform(0.2, 1.2))
            workers.kill(index)

    await with_fault(load, workers, url, kill)


async def test_broker_stopped_and_started(load: Load, supervisor: Make, cluster: PostgreSQL, broker: RabbitMQ) -> None:
    url = cluster.create_database()
    workers = supervisor(url)

    async def fault() -> None:
        await asyncio.to_thread(broker.stop)
        await asyncio.sleep(1)
        await asyncio.to_thread(broker.start)

    await with_fault(load, workers, url, fault)
    assert workers.logged("broker_away") > 0


async def test_connections_closed_by_the_broker(load: Load, supervisor: Make, cluster: PostgreSQL, broker: RabbitMQ) -> None:
    url = cluster.create_database()
    workers = supervisor(url)

    async def fault() -> None:
        for _ in range(2):
            await asyncio.to_thread(broker.ctl, "close_all_connections", "fault")
            await asyncio.sleep(1)

    await with_fault(load, workers, url, fault)
    assert workers.logged("session_lost") > 0


async def test_memory_alarm_blocks_publishers(load: Load, supervisor: Make, cluster: PostgreSQL, broker: RabbitMQ) -> None:
    url = cluster.create_database()
    workers = supervisor(url)

    async def fault() -> None:
        await asyncio.to_thread(broker.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
        await asyncio.sleep(3)
        await asyncio.to_thread(broker.ctl, "set_vm_memory_high_watermark", "absolute", "2GB")

    await with_fault(load, workers, url, fault)


async def test_queue_deleted(load: Load, supervisor: Make, cluster: PostgreSQL, broker: RabbitMQ, queue: str) -> None:
    """What was in the queue goes with it, which is the deleter's loss; the workers declare it again and serve."""
    url = cluster.create_database()
    workers = supervisor(url)
    workers.start(2)
    await asyncio.to_thread(broker.ctl, "delete_queue", queue)
    load.start()
    await asyncio.sleep(1)
    await check(load, workers, url)


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_postgresql_restarts(load: Load, supervisor: Make, cluster: PostgreSQL, how: str) -> None:
    url = cluster.create_database()
    workers = supervisor(url)

    async def fault() -> None:
        await asyncio.to_thread(getattr(cluster, how))
        await asyncio.sleep(3)
        await asyncio.to_thread(cluster.start)

    await with_fault(load, workers, url, fault)
    assert workers.logged("database_away") > 0


async def test_postgresql_ends_connections(load: Load, supervisor: Make, cluster: PostgreSQL) -> None:
    url = cluster.create_database()
    workers = supervisor(url)

    async def fault() -> None:
        for _ in range(5):
            await _sql(
                cluster.url("postgres"),
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flow-run-worker'",
            )
            await asyncio.sleep(0.3)

    await with_fault(load, workers, url, fault)


async def test_postgresql_table_locked(load: Load, supervisor: Make, cluster: PostgreSQL) -> None:
    url = cluster.create_database()
    workers = supervisor(url)

    async def fault() -> None:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        async with connection.transaction():
            await connection.execute("LOCK TABLE flow_run IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(5)
        await connection.close()

    await with_fault(load, workers, url, fault)


async def test_postgresql_statement_timeout(load: Load, supervisor: Make, cluster: PostgreSQL) -> None:
    url = cluster.create_database()
    workers = supervisor(url)

    async def fault() -> None:
        name = url.rpartition("/")[2]
        await _sql(url, f"ALTER DATABASE {name} SET statement_timeout = 1")
        await _sql(
            cluster.url("postgres"),
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flow-run-worker'",
        )
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        await connection.execute("SET statement_timeout = 0")
        async with connection.transaction():
            await connection.execute("LOCK TABLE flow_run IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(1)
        await connection.execute(f"ALTER DATABASE {name} RESET statement_timeout")
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flow-run-worker'"
        )
        await connection.close()

    await with_fault(load, workers, url, fault)
    assert workers.logged("statement timeout") > 0


async def test_sqlite_locked_by_another_process(load: Load, supervisor: Make, sqlite_url: str) -> None:
    workers = supervisor(sqlite_url)

    async def fault() -> None:
        connection = sqlite3.connect(sqlite_url.partition(":///")[2], timeout=10, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(12)
        connection.execute("ROLLBACK")
        connection.close()

    await with_fault(load, workers, sqlite_url, fault)
    assert workers.logged("database_away") > 0


async def test_rolling_restarts(load: Load, supervisor: Make, cluster: PostgreSQL) -> None:
    """Three workers, each restarted in turn: nothing lost, and nothing done again that was finished."""
    url = cluster.create_database()
    workers = supervisor(url)

    async def fault() -> None:
        for index in range(6):
            assert await workers.restart(index) == 0
            await asyncio.sleep(0.3)

    await with_fault(load, workers, url, fault, workers=3)
    replies = [len(load.replies[each]) for each in load.keys]
    assert set(replies) == {1}


async def test_sigterm_while_the_database_is_away(load: Load, supervisor: Make, cluster: PostgreSQL) -> None:
    url = cluster.create_database()
    workers = supervisor(url, shutdown_timeout=2)

    async def fault() -> None:
        await asyncio.to_thread(cluster.stop)
        await asyncio.sleep(1)
        assert await workers.restart(0) == 0
        await asyncio.to_thread(cluster.start)

    await with_fault(load, workers, url, fault)


async def _sql(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
