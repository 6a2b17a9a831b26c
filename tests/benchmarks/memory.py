"""How large a worker becomes, whatever requests come: ``python -m tests.benchmarks.memory``.

Each row fills the queue, starts one worker with default settings, and waits until each request is
answered. Takes some minutes and gigabytes of disk; ``--scale 0.1`` has a tenth of the requests.
``--limit 512`` has the operating system end a worker that is larger than so many MiB, as a
container's limit does (a memory cgroup, which needs root).
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage
from rich.console import Console
from rich.table import Table

from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from worker.bench import Fleet
from worker.broker.topology import Topology
from worker.store import migrations

console = Console(width=130)
MIB = 1024 * 1024
FLOW_ID = str(uuid4())
# A reply that takes longer than this many seconds will not come.
PATIENCE = 300.0


def text(size: int) -> bytes:
    """A request with so many bytes of text."""
    return json.dumps({"flow_id": FLOW_ID, "context": {"text": "x" * size}}).encode()


def objects(size: int) -> bytes:
    """A request with so many bytes of small objects: what takes most, once it is decoded."""
    return json.dumps({"flow_id": FLOW_ID, "context": {"objects": [{"a": 1}] * (size // 10)}}).encode()


def lists(size: int) -> bytes:
    """A request with so many bytes of empty lists."""
    return json.dumps({"flow_id": FLOW_ID, "context": {"lists": [[]] * (size // 4)}}).encode()


@dataclass(frozen=True)
class Row:
    """Requests of one kind, perhaps among small ones.

    Attributes:
        what: in words.
        body: of each.
        count: how many.
        small: how many small ones among them, evenly.
    """

    what: str
    body: bytes
    count: int
    small: int = 0

    def bodies(self, scale: float) -> Iterator[bytes]:
        """All bodies in the order in which they are published."""
        count, small = max(1, int(self.count * scale)), int(self.small * scale)
        for number in range(count):
            yield self.body
            for _ in range(small * (number + 1) // count - small * number // count):
                yield text(100)


ROWS = (
    Row("1 kB of text", text(1000), 20_000),
    Row("30 kB of text", text(30_000), 3000),
    Row("30 kB of small objects", objects(30_000), 3000),
    Row("1 MB of text", text(1_000_000), 1500),
    Row("900 kB of small objects", objects(900_000), 400),
    Row("900 kB of empty lists", lists(900_000), 400),
    Row("1 MB of text, among small ones", text(1_000_000), 200, small=20_000),
    Row("900 kB of small objects, among small ones", objects(900_000), 100, small=10_000),
    Row("8 MiB, refused", text(8 * MIB), 300),
    Row("15 MiB, refused, among small ones", text(15 * MIB), 50, small=5000),
)


@dataclass(frozen=True)
class Measured:
    """One row on one database; ``peak`` in bytes."""

    row: Row
    database: str
    peak: int
    seconds: float
    statuses: Counter[int]
    dead_letters: int


@contextmanager
def limited(mebibytes: int) -> Iterator[Sequence[str]]:
    """A command that runs a worker within a memory limit, in MiB; none for 0."""
    if not mebibytes:
        yield ()
        return
    second = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = Path("/sys/fs/cgroup", "" if second else "memory", f"flow-run-worker-{os.getpid()}")
    group.mkdir()
    try:
        (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(mebibytes * MIB))
        yield ("sh", "-c", f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -m worker run", "sh")
    finally:
        group.rmdir()


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
    amqp_url: str, database_url: str, row: Row, scale: float, command: Sequence[str]
) -> Measured:
    """Fill the queue, have one worker empty it."""
    topology = Topology(f"memory-{uuid4().hex[:8]}.create")
    expected = sum(1 for _ in row.bodies(scale))
    replies = Replies(expected)
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await topology.declare(channel)
        reply_queue = await channel.declare_queue(exclusive=True)
        for body in row.bodies(scale):
            message = aio_pika.Message(
                body, reply_to=reply_queue.name, delivery_mode=2, content_type="application/json"
            )
            await channel.default_exchange.publish(message, topology.queue)
        consuming = await connection.channel()
        await consuming.set_qos(prefetch_count=100)
        await (await consuming.get_queue(reply_queue.name, ensure=False)).consume(replies, no_ack=True)
        with tempfile.TemporaryDirectory() as folder:
            fleet = Fleet(amqp_url, database_url, topology.queue, Path(folder), command=command)
            started = time.monotonic()
            async with fleet.running() as running:
                await running.watch(asyncio.wait_for(replies.all.wait(), PATIENCE))
                seconds, peak = time.monotonic() - started, running.peak_memory()
        dead = (await channel.get_queue(topology.dead_letter_queue)).declaration_result.message_count or 0
        for name in (topology.queue, topology.dead_letter_queue):
            await channel.queue_delete(name)
    database = "SQLite" if database_url.startswith("sqlite") else "PostgreSQL"
    return Measured(row, database, peak, seconds, replies.statuses, dead)


def show(measured: Sequence[Measured]) -> None:
    """Print the table."""
    table = Table("requests", "count", "database", "largest size, MiB", "seconds", "answers", "dead letters")
    for each in measured:
        table.add_row(
            each.row.what,
            f"{each.statuses.total():,}",
            each.database,
            f"{each.peak / MIB:.0f}",
            f"{each.seconds:.1f}",
            ", ".join(f"{count} of {status}" for status, count in sorted(each.statuses.items())),
            str(each.dead_letters),
        )
    console.print(table)


async def main(scale: float, databases: Sequence[str], rows: Sequence[int], limit: int) -> None:
    measured: list[Measured] = []
    with (
        RabbitMQ() as broker,
        PostgreSQL() as cluster,
        tempfile.TemporaryDirectory() as folder,
        limited(limit) as command,
    ):
        for number, row in enumerate(ROWS):
            for database in databases:
                if rows and number not in rows:
                    continue
                url = f"sqlite+aiosqlite:///{folder}/{number}.db"
                if database == "postgresql":
                    url = cluster.create_database()
                    await migrations.upgrade(url)
                measured.append(await measure(broker.url, url, row, scale, command))
                console.print(
                    f"{row.what}, {database}: {measured[-1].peak / MIB:.0f} MiB, {measured[-1].seconds:.1f} s"
                )
    show(measured)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="how many of the requests")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), action="append")
    parser.add_argument("--row", type=int, action="append", default=[], help="only this one, from 0")
    parser.add_argument("--limit", type=int, default=0, help="MiB at which a worker is ended")
    arguments = parser.parse_args()
    databases = arguments.database or ["postgresql", "sqlite"]
    uvloop.run(main(arguments.scale, databases, arguments.row, arguments.limit))
