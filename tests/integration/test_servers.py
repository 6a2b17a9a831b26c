"""The private servers themselves: they stay usable after each fault of the tests, and leave nothing
behind.
"""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from tests.support.postgresql import PostgreSQL
from tests.support.processes import answers, wait_until
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ

ROOT = Path(__file__).parents[2]


async def test_postgresql_comes_back_after_kill_with_a_statement_running() -> None:
    with PostgreSQL() as cluster:
        url = cluster.create_database().replace("+asyncpg", "")
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        running = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
        observer = await asyncpg.connect(url)
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        while not await observer.fetchval(asleep):
            await asyncio.sleep(0.01)
        cluster.kill()
        assert not answers(cluster.port)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await running
        cluster.start()
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT one FROM kept") == 1
        await connection.close()


async def test_rabbitmq_comes_back_after_kill_with_what_was_confirmed() -> None:
    with RabbitMQ() as node:
        async with Producer(node.url, "kept") as producer:
            await producer.channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
            await producer.publish(b"kept")
        wait_until(lambda: node.on_disk("kept"), "the queue on disk")
        node.kill()
        assert not answers(node.port)
        node.start()
        async with Producer(node.url, "kept") as producer:
            message = await (await producer.channel.get_queue("kept")).get(no_ack=True, timeout=30)
            assert message is not None
            assert message.body == b"kept"


def test_server_ends_with_its_starter_even_if_that_is_killed() -> None:
    script = (
        "from tests.support.postgresql import PostgreSQL\n"
        "cluster = PostgreSQL()\n"
        "cluster.start()\n"
        "print(cluster.port, cluster._folder, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        port, folder = starter.stdout.readline().decode().split()
        assert answers(int(port))
        starter.kill()
    # PostgreSQL stops answering before it ends; these files go last.
    locks = ("data/postmaster.pid", ".s.PGSQL.*")
    wait_until(lambda: not any(any(Path(folder).glob(lock)) for lock in locks), "the end of PostgreSQL")
    assert not answers(int(port))
    shutil.rmtree(folder)
