"""``python -m tests.benchmarks.prune [--size N] [--rate R] [--batch N] [--pause S]``: measures the
speed of ``db prune`` while a worker serves at a rate, and the latency of requests meanwhile.

The command is interrupted once, and repeated. It takes minutes and gigabytes of disk.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import asyncpg
import uvloop

from tests.benchmarks.client import client_of_a_worker
from tests.benchmarks.large import grow
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from worker.bench import Fleet, Requests, open_load
from worker.bench.load import Load
from worker.broker.topology import Topology
from worker.store import migrations
from worker.tasks.collector import relieve_collector

# Seconds of measurement before and after, and the share of the runs that is left when the command
# is interrupted.
ALONE_SECONDS = 15
LEFT = 0.5


class Latencies:
    """Latencies of requests at a rate, grouped by the phase in which they were sent."""

    def __init__(self, load: Load, rate: float) -> None:
        self._load, self._rate = load, rate
        self.sent = 0

    async def during(self, what: str, goes_on: Callable[[], bool]) -> None:
        found: list[float] = []
        while goes_on():
            count = int(self._rate * 2)
            found += (await self._load.at_rate(count, self._rate)).latencies
            self.sent += count
        found.sort()
        shown = ", ".join(
            f"p{100 * share:g} {found[int(len(found) * share)] * 1000:.1f}" for share in (0.5, 0.99, 0.999)
        )
        print(f"{what}: {len(found):,} requests, {shown}, most {found[-1] * 1000:.0f} ms", flush=True)


async def age(url: str) -> None:
    """Set the end of the only run to a hundred days ago."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    await connection.execute(
        "UPDATE flow_run SET state_type = 'COMPLETED', end_time = now() - interval '100 days'"
    )
    await connection.close()


async def old_runs(url: str) -> int:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return int(await connection.fetchval("SELECT count(*) FROM flow_run WHERE end_time IS NOT NULL"))
    finally:
        await connection.close()


async def start_prune(url: str, batch: int, pause: float) -> Process:
    arguments = ("db", "prune", "--older-than", "90d", "--batch", str(batch), "--pause", str(pause), "--yes")
    environment = {**os.environ, "WORKER_DATABASE_URL": url}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "worker", *arguments, env=environment)


async def main(size: int, rate: float, batch: int, pause: float) -> None:
    async with AsyncExitStack() as stack:
        broker, cluster = stack.enter_context(RabbitMQ()), stack.enter_context(PostgreSQL())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster.stop()
        cluster.start("-c", "max_wal_size=8GB")
        url = cluster.create_database()
        await migrations.upgrade(url)
        async with client_of_a_worker(broker.url, url) as client:
            await client.create_flow_run(flow_id=uuid4(), idempotency_key="template")
        await age(url)
        await grow(url, size)
        topology = Topology(f"flow-runs-bench-{uuid4().hex[:8]}.create")
        requests = Requests("small", uuid4(), "prune-")
        relieve_collector()
        load = await stack.enter_async_context(
            open_load(broker.url, topology, lambda number: requests(latencies.sent + number))
        )
        latencies = Latencies(load, rate)
        await stack.enter_async_context(
            Fleet(broker.url, url, topology.queue, folder).running(load.consumers_on_queue)
        )
        await load.warm_up()

        async def alone(what: str) -> None:
            until = time.monotonic() + ALONE_SECONDS
            await latencies.during(what, lambda: time.monotonic() < until)

        await alone("before")
        for left in (LEFT, 0.0):
            before, started = await old_runs(url), time.monotonic()
            pruning = await start_prune(url, batch, pause)
            try:
                ending = asyncio.create_task(pruning.wait())
                watching = asyncio.create_task(
                    interrupt_at(url, pruning, size * left) if left else asyncio.sleep(0)
                )
                await latencies.during("meanwhile", lambda task=ending: not task.done())  # type: ignore[misc]
                await watching
            finally:
                if pruning.returncode is None:
                    pruning.kill()
            after, seconds = await old_runs(url), time.monotonic() - started
            print(
                f"exit code {pruning.returncode}: {before - after:,} of {before:,} runs deleted, "
                f"{(before - after) / seconds:,.0f} a second, their states as well",
                flush=True,
            )
        await alone("after")


async def interrupt_at(url: str, pruning: Process, left: float) -> None:
    while await old_runs(url) > left:
        await asyncio.sleep(2)
    pruning.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--pause", type=float, default=0.1)
    options = parser.parse_args()
    uvloop.run(main(options.size, options.rate, options.batch, options.pause))
