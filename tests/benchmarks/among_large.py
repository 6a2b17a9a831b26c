"""Sends small requests among large ones at a fixed rate through one worker, and measures slice by
slice the latency of the small ones and the worker's size.

``python -m tests.benchmarks.among_large``. One request in ``--every`` has a megabyte of text, the
others have 200 bytes. ``--worker FOLDER`` (may be repeated) measures the workers of these checkouts
instead, in turn, ``--rounds`` times.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import aio_pika
import uvloop
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from rich.console import Console

from tests.benchmarks.memory import MIB, text
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from tests.support.supervisor import resident
from worker.bench import Fleet
from worker.broker.topology import Topology

console = Console(width=130)
HERE = Path(__file__).parents[2]
SMALL, LARGE = text(200), text(1_000_000)
# Seconds after which a reply counts as lost.
PATIENCE = 300.0


@dataclass(frozen=True)
class Options:
    """``size`` requests in ``slices`` at ``rate`` a second; one in ``every`` is large."""

    size: int
    slices: int
    rate: float
    every: int


@dataclass(frozen=True)
class Slice:
    """Latencies of the small requests in milliseconds, from when each was due; the worker's size in
    MiB at the end of the slice, and its peak until then.
    """

    p50: float
    p99: float
    size: float
    peak: float


class Load:
    """Sends requests at a rate, and takes their replies."""

    def __init__(self, channel: AbstractChannel, queue: str, reply_to: str) -> None:
        self._channel = channel
        self._queue = queue
        self._reply_to = reply_to
        self._open: dict[str, tuple[float, bool]] = {}
        self._latencies: list[float] = []
        self.failed = 0

    async def on_reply(self, message: AbstractIncomingMessage) -> None:
        """Note the latency of a small request."""
        due, small = self._open.pop(message.correlation_id or "")
        self.failed += message.headers["status"] != 201
        if small:
            self._latencies.append((time.perf_counter() - due) * 1000)

    async def send(self, count: int, options: Options) -> Sequence[float]:
        """Send ``count`` requests; returns the small ones' latencies in milliseconds, sorted."""
        self._latencies = []
        start = time.perf_counter() + 0.05
        for number in range(count):
            due = start + number / options.rate
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            small = number % options.every != options.every // 2
            correlation_id = uuid4().hex
            self._open[correlation_id] = due, small
            message = aio_pika.Message(
                SMALL if small else LARGE,
                reply_to=self._reply_to,
                correlation_id=correlation_id,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await self._channel.default_exchange.publish(message, self._queue)
        async with asyncio.timeout(PATIENCE):
            while self._open:
                await asyncio.sleep(0.05)
        return sorted(self._latencies)


@asynccontextmanager
async def open_load(amqp_url: str, topology: Topology) -> AsyncIterator[Load]:
    """A load on a request queue of its own. Requests and replies use separate connections."""
    async with await aio_pika.connect(amqp_url) as sending, await aio_pika.connect(amqp_url) as receiving:
        channel = await sending.channel(publisher_confirms=False)
        await topology.declare(channel)
        replies = await (await receiving.channel()).declare_queue(exclusive=True)
        load = Load(channel, topology.queue, replies.name)
        await replies.consume(load.on_reply, no_ack=True)
        try:
            yield load
        finally:
            for queue in (topology.queue, topology.dead_letter_queue):
                await channel.queue_delete(queue)


async def measure(amqp_url: str, database_url: str, checkout: Path, options: Options) -> list[Slice]:
    """Measure one worker under this load."""
    topology = Topology(f"among-large-{uuid4().hex[:8]}.create")
    worker = f"cd {checkout} && exec {sys.executable} -m worker"
    upgrading = await asyncio.create_subprocess_shell(
        f"{worker} db upgrade", env={**os.environ, "WORKER_DATABASE_URL": database_url}
    )
    assert await upgrading.wait() == 0
    made: list[Slice] = []
    with tempfile.TemporaryDirectory() as logs:
        command = ("sh", "-c", f"{worker} run", "sh")
        fleet = Fleet(amqp_url, database_url, topology.queue, Path(logs), command=command)
        async with open_load(amqp_url, topology) as load, fleet.running() as running:
            await running.watch(load.send(1_000, options))  # warm connections, statements and code
            part = options.size // options.slices
            for number in range(1, options.slices + 1):
                latencies = await running.watch(load.send(part, options))
                p50, p99 = (latencies[int(len(latencies) * share)] for share in (0.5, 0.99))
                size = resident(running.processes[0].pid) / MIB
                made.append(Slice(p50, p99, size, running.peak_memory() / MIB))
                if options.slices > 1:
                    console.print(f"{number * part:,}: {shown(made[-1:])}")
            assert not load.failed, f"{load.failed} were not answered 201"
    return made


def shown(slices: Sequence[Slice]) -> str:
    """The medians of several slices, as text."""
    p50, p99, size = (
        statistics.median(getattr(each, name) for each in slices) for name in ("p50", "p99", "size")
    )
    return (
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, {size:.0f} MiB, at most {max(each.peak for each in slices):.0f}"
    )


async def main(checkouts: Sequence[Path], rounds: int, options: Options) -> None:
    """Measure each checkout's worker, in turn."""
    found: dict[Path, list[Slice]] = {checkout: [] for checkout in checkouts}
    with RabbitMQ() as broker, PostgreSQL() as cluster:
        for _ in range(rounds):
            for checkout in checkouts:
                found[checkout] += await measure(broker.url, cluster.create_database(), checkout, options)
                console.print(f"{checkout.name}: {shown(found[checkout][-options.slices :])}")
    for checkout, slices in found.items():
        console.print(f"[bold]{checkout.name}[/bold], {rounds} rounds: {shown(slices)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=3_600)
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--worker", type=Path, action="append", metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    uvloop.run(
        main(
            [each.resolve() for each in given.worker or [HERE]],
            given.rounds,
            Options(given.size, given.slices, given.rate, given.every),
        )
    )
