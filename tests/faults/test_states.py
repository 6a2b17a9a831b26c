"""States that are told while the workers, the broker and the database fail: none is missing."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from uuid import UUID

import aio_pika
import pytest
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from tests.conftest import StartWorker
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from tests.support.states import Writer, telling
from tests.support.worker_process import WorkerProcess
from worker.settings import Settings
from worker.states.patience import PATIENCE
from worker.store import Store

KILLS = 6


class Box:
    """A durable queue with all states that are told.

    Attributes:
        told: how often each state was told, by its id.
    """

    def __init__(self, amqp_url: str, queue: str) -> None:
        self._url = amqp_url
        self._exchange = f"{queue}.states"
        self._name = f"{queue}.box"
        self.told: Counter[UUID] = Counter()

    async def bind(self) -> None:
        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange(self._exchange, "topic", durable=True)
            box = await channel.declare_queue(self._name, durable=True, arguments={"x-queue-type": "quorum"})
            await box.bind(exchange, "#")

    async def has(self, writer: Writer) -> None:
        """Take states until none of those that were written is missing."""
        async with asyncio.timeout(240):
            while set(writer.written) - self.told.keys():
                try:
                    await self.take()
                except CONNECTION_EXCEPTIONS:
                    await asyncio.sleep(0.5)

    async def take(self) -> None:
        """Take the states that are there now."""
        async with await aio_pika.connect(self._url) as connection:
            queue = await (await connection.channel()).get_queue(self._name)
            while (message := await queue.get(fail=False)) is not None:
                await message.ack()
                assert message.message_id is not None
                self.told[UUID(message.message_id)] += 1
        await asyncio.sleep(0.1)


async def write(writer: Writer, stop: asyncio.Event) -> None:
    """Write states all the time, some of them in transactions of some seconds."""
    while not stop.is_set():
        await writer.states(2)
        await asyncio.sleep(0.05)


async def write_slowly(writer: Writer, stop: asyncio.Event) -> None:
    while not stop.is_set():
        connection = await writer.another()
        async with connection.transaction():
            late = await writer.states(2, connection=connection)
            await asyncio.sleep(3)
        writer.written += late
        await connection.close()


def teller(workers: list[WorkerProcess]) -> WorkerProcess | None:
    """The worker that tells states."""
    for worker in workers:
        if "telling_states" in worker.output and worker.process.poll() is None:
            return worker
    return None


async def test_a_worker_that_is_killed_again_and_again_loses_no_state(
    start_worker: StartWorker, amqp_url: str, queue: str, database_url: str
) -> None:
    await (await Store.open(database_url, migrate=True)).close()
    box = Box(amqp_url, queue)
    await box.bind()
    stop = asyncio.Event()
    async with Writer(database_url) as writer:
        workers = [start_worker(database_url, states="all", wait=False) for _ in range(2)]
        async with asyncio.timeout(240):
            while teller(workers) is None:
                await asyncio.sleep(0.1)
        writing = [asyncio.create_task(write(writer, stop))]
        if not writer.sqlite:
            writing.append(asyncio.create_task(write_slowly(writer, stop)))
        for _ in range(KILLS):
            async with asyncio.timeout(240):
                while (telling := teller(workers)) is None:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(random.uniform(0.2, 2.5))
            telling.kill()
            workers.append(start_worker(database_url, states="all", wait=False))
        stop.set()
        await asyncio.gather(*writing)
        await box.has(writer)
        written = len(writer.written)
    doubles = box.told.total() - len(box.told)
    print(f"{written} states, {KILLS} kills, missing 0, doubles {doubles}")
    # About a second's states for each kill.
    assert doubles < written / 2


@pytest.mark.parametrize(
    "crash", [pytest.param(False, id="stopped", marks=pytest.mark.long), pytest.param(True, id="killed")]
)
async def test_servers_that_restart_lose_no_state(crash: bool) -> None:
    with RabbitMQ() as broker, PostgreSQL() as cluster:
        queue = "flow-runs.create"
        settings = Settings(
            amqp_url=broker.url, queue=queue, database_url=cluster.create_database(), states="all"
        )
        await (await Store.open(settings.database_url, migrate=True)).close()
        box = Box(broker.url, queue)
        await box.bind()
        async with telling(settings, replace(PATIENCE, first=1.0)):
            async with Writer(settings.database_url) as writer:
                while not box.told:
                    await writer.states(1)
                    await box.take()
                writer.written.clear()
                for _ in range(20):
                    await writer.states(2)
                    await asyncio.sleep(0.05)
                await asyncio.to_thread(broker.kill if crash else broker.stop)
                await writer.states(200)
                await asyncio.to_thread(broker.start)
                await writer.states(200)
                await box.has(writer)
            await asyncio.to_thread(cluster.kill if crash else cluster.stop)
            await asyncio.sleep(1)
            await asyncio.to_thread(cluster.start)
            written = writer.written
            async with Writer(settings.database_url) as writer:
                await writer.states(100)
                await box.has(writer)
        assert not set(written) - box.told.keys()
        print(f"{len(written) + 100} states, doubles {box.told.total() - len(box.told)}")
