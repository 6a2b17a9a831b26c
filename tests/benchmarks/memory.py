"""Measures the size of a worker for each shape of request: ``python -m tests.benchmarks.memory``.

Each shape fills the queue, starts one worker with default settings, and waits until each request is
answered. This takes some minutes and gigabytes of disk; ``--scale 0.1`` sends a tenth of the
requests. ``--limit 512`` puts the worker into a memory cgroup of 512 MiB, as a container has it
(needs root).
"""

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import aio_pika
import uvloop
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
from rich.console import Console
from rich.table import Table

from tests.conformance.prefect_server import PrefectServer
from tests.support.memory_limit import limited
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from tests.support.shapes import MIB, OF_DEPLOYMENTS, PLAIN, Shape
from worker.bench import Fleet
from worker.broker.topology import Topology
from worker.store import migrations

console = Console(width=130)
# Seconds after which a reply counts as lost.
PATIENCE = 300.0


@dataclass(frozen=True)
class Measured:
    """One shape on one database; ``peak`` in bytes."""

    shape: Shape
    database: str
    peak: int
    seconds: float
    statuses: Counter[int]
    dead_letters: int


class Replies:
    """Counts replies by status."""

    def __init__(self, expected: int) -> None:
        self.statuses: Counter[int] = Counter()
        self._expected = expected
        self.all = asyncio.Event()

    async def __call__(self, message: AbstractIncomingMessage) -> None:
        status = message.headers.get("status")
        self.statuses[status if isinstance(status, int) else 0] += 1
        if self.statuses.total() == self._expected:
            self.all.set()


async def measure(
    amqp_url: str, database_url: str, api: str, shape: Shape, scale: float, command: Sequence[str]
) -> Measured:
    """Fill the queue, and have one worker empty it."""
    topology = Topology(f"memory-{uuid4().hex[:8]}.create")
    flow = await shape.deployments.make(database_url, api) if shape.deployments else None
    database = "SQLite" if database_url.startswith("sqlite") else "PostgreSQL"
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await topology.declare(channel)
        count = max(1, int(shape.count * scale))
        if shape.made_before is not None:
            before = [(shape.made_before(number), None) for number in range(count)]
            await _served(connection, topology, amqp_url, database_url, before, ())
        requests = shape.requests(scale, flow)
        seconds, peak, statuses = await _served(
            connection, topology, amqp_url, database_url, requests, command
        )
        dead = (await channel.get_queue(topology.dead_letter_queue)).declaration_result.message_count or 0
        for name in (topology.queue, topology.dead_letter_queue):
            await channel.queue_delete(name)
    return Measured(shape, database, peak, seconds, statuses, dead)


async def _served(
    connection: AbstractConnection,
    topology: Topology,
    amqp_url: str,
    database_url: str,
    requests: Iterable[tuple[bytes, str | None]],
    command: Sequence[str],
) -> tuple[float, int, Counter[int]]:
    """Seconds until a worker has served the waiting requests, its peak size in bytes, and the
    statuses.
    """
    channel = await connection.channel()
    reply_queue = await channel.declare_queue(exclusive=True)
    expected = 0
    for body, type_ in requests:
        message = aio_pika.Message(
            body, reply_to=reply_queue.name, delivery_mode=2, content_type="application/json", type=type_
        )
        await channel.default_exchange.publish(message, topology.queue)
        expected += 1
    replies = Replies(expected)
    consuming = await connection.channel()
    await consuming.set_qos(prefetch_count=100)
    await (await consuming.get_queue(reply_queue.name, ensure=False)).consume(replies, no_ack=True)
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(amqp_url, database_url, topology.queue, Path(folder), command=command)
        started = time.monotonic()
        async with fleet.running() as running:
            await running.watch(asyncio.wait_for(replies.all.wait(), PATIENCE))
            seconds, peak = time.monotonic() - started, running.peak_memory()
    await consuming.close()
    await reply_queue.delete()
    return seconds, peak, replies.statuses


def show(measured: Sequence[Measured]) -> None:
    """Print the table."""
    table = Table("requests", "count", "database", "largest size, MiB", "seconds", "answers", "dead letters")
    for each in measured:
        table.add_row(
            each.shape.what,
            f"{each.statuses.total():,}",
            each.database,
            f"{each.peak / MIB:.0f}",
            f"{each.seconds:.1f}",
            ", ".join(f"{count} of {status}" for status, count in sorted(each.statuses.items())),
            str(each.dead_letters),
        )
    console.print(table)


async def main(scale: float, databases: Sequence[str], shapes: Sequence[int], limit: int) -> None:
    measured: list[Measured] = []
    with (
        RabbitMQ() as broker,
        PostgreSQL() as cluster,
        tempfile.TemporaryDirectory() as folder,
        limited(limit) as command,
    ):
        for database in databases:
            with ExitStack() as stack:
                prefect: PrefectServer | None = None
                for number, shape in enumerate((*PLAIN, *OF_DEPLOYMENTS)):
                    if shapes and number not in shapes:
                        continue
                    url = f"sqlite+aiosqlite:///{folder}/{number}.db"
                    if database == "postgresql":
                        url = cluster.create_database()
                    if shape.deployments is not None:
                        prefect = prefect or stack.enter_context(PrefectServer(url))
                        url = prefect.database_url
                    elif database == "postgresql":
                        await migrations.upgrade(url)
                    api = "" if prefect is None else prefect.api
                    measured.append(await measure(broker.url, url, api, shape, scale, command))
                    peak = measured[-1].peak / MIB
                    console.print(f"{shape.what}, {database}: {peak:.0f} MiB, {measured[-1].seconds:.1f} s")
    show(measured)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the requests")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), action="append")
    parser.add_argument("--row", type=int, action="append", default=[], help="only this one, from 0")
    parser.add_argument("--limit", type=int, default=0, help="memory limit of a worker in MiB")
    arguments = parser.parse_args()
    databases = arguments.database or ["postgresql", "sqlite"]
    uvloop.run(main(arguments.scale, databases, arguments.row, arguments.limit))
