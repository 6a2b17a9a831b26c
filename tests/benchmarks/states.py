"""The cost of telling states: how late one is told at rest, how fast many are told at once, the
memory for it, and the CPU at rest.

    python -m tests.benchmarks.states [--database sqlite] [--states 100000]

With --before, so many older states are in the table. With --rate, the worker also serves so many
requests a second for a minute, and the lateness meanwhile is measured too.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from uuid import UUID, uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from tests.support.postgresql import PostgreSQL
from tests.support.processes import free_ports
from tests.support.rabbitmq import RabbitMQ
from tests.support.states import Writer
from tests.support.supervisor import resident
from tests.support.worker_process import WorkerProcess
from worker.bench.load import Requests, open_load
from worker.broker.topology import Topology
from worker.store import Store

QUEUE = "flow-runs.create"
# Seconds in which each state is read once more at each age.
PAUSE = 130.0
# States that one statement writes.
FILL = 500_000


class Told:
    """Takes all states, with the times at which they came."""

    def __init__(self) -> None:
        self.at: dict[UUID, float] = {}
        self.count = 0

    async def follow(self, connection: aio_pika.abc.AbstractConnection) -> None:
        channel = await connection.channel()
        await channel.set_qos(1000)
        exchange = await channel.get_exchange(f"{QUEUE}.states")
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange, "#")
        await queue.consume(self._came, no_ack=True)

    async def _came(self, message: AbstractIncomingMessage) -> None:
        self.count += 1
        self.at[UUID(message.message_id)] = time.monotonic()

    async def has(self, ids: list[UUID]) -> None:
        while not self.at.keys() >= set(ids):
            await asyncio.sleep(0.005)


async def lateness(writer: Writer, told: Told, count: int, pause: float) -> list[float]:
    """Seconds from a commit to its message."""
    seconds: list[float] = []
    for _ in range(count):
        ids = await writer.states(1)
        committed = time.monotonic()
        await told.has(ids)
        seconds.append(told.at[ids[0]] - committed)
        await asyncio.sleep(pause)
    return sorted(seconds)


def cpu(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def many(writer: Writer, count: int) -> None:
    """Write states in one statement, as of now, each with a run of its own."""
    zero = "'1970-01-01 00:00:00.000000'" if writer.sqlite else "'0'::interval"
    false = "0" if writer.sqlite else "false"
    if writer.sqlite:
        hexed = "lower(hex(randomblob(4))||'-'||hex(randomblob(2))||'-'||hex(randomblob(2))||'-'||hex(randomblob(2))||'-'||hex(randomblob(6)))"
        numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
        await writer.execute("BEGIN IMMEDIATE")
        await writer.execute(
            "INSERT INTO flow_run (id, name, flow_id, run_count, total_run_time, auto_scheduled, parameters) "
            f"{numbers} SELECT {hexed}, 'many', '{uuid4()}', 0, {zero}, {false}, '{{}}' FROM n"
        )
        now = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
        await writer.execute(
            "INSERT INTO flow_run_state (id, created, updated, flow_run_id, type, timestamp, name, state_details) "
            f"SELECT {hexed}, {now}, {now}, id, 'COMPLETED', {now}, 'Completed', '{{}}' FROM flow_run WHERE name = 'many'"
        )
        await writer.execute("COMMIT")
        return
    await writer.execute(
        "WITH run AS (INSERT INTO flow_run (id, name, flow_id, run_count, total_run_time, auto_scheduled, parameters) "
        f"SELECT gen_random_uuid(), 'many', '{uuid4()}', 0, {zero}, {false}, '{{}}' FROM generate_series(1, {count}) RETURNING id) "
        "INSERT INTO flow_run_state (id, created, updated, flow_run_id, type, timestamp, name, state_details) "
        "SELECT gen_random_uuid(), now(), clock_timestamp(), id, 'COMPLETED', now(), 'Completed', '{}' FROM run"
    )


async def under_load(amqp_url: str, writer: Writer, told: Told, rate: float) -> list[float]:
    """Seconds from a commit to its message, while the worker serves requests at this rate."""
    async with open_load(amqp_url, Topology(QUEUE), Requests("small", uuid4(), "load-")) as load:
        loading = asyncio.create_task(load.at_rate(int(rate * 60), rate))
        await asyncio.sleep(5)
        seconds = await lateness(writer, told, 100, 0.13)
        await loading
    return seconds


async def measure(
    url: str, amqp_url: str, folder: Path, *, states: int, before: int = 0, rate: float = 0.0
) -> None:
    await (await Store.open(url, migrate=True)).close()
    async with Writer(url) as writer:
        for start in range(0, before, FILL):
            await many(writer, min(FILL, before - start))
    (port,) = free_ports(1)
    worker = WorkerProcess(
        folder / "worker.log",
        {
            "WORKER_AMQP_URL": amqp_url,
            "WORKER_DATABASE_URL": url,
            "WORKER_STATES": "all",
            "WORKER_HTTP_PORT": str(port),
        },
    )
    figures: dict[str, float | str] = {"database": url.partition("+")[0]}
    try:
        worker.wait_until_logged("telling_states")
        pid, told = worker.process.pid, Told()
        async with await aio_pika.connect(amqp_url) as connection, Writer(url) as writer:
            await told.follow(connection)
            await lateness(writer, told, 5, 0.1)
            seconds = await lateness(writer, told, 50, 0.13)
            figures["at rest: median, s"] = round(statistics.median(seconds), 3)
            figures["at rest: highest, s"] = round(seconds[-1], 3)
            began, used = time.monotonic(), cpu(pid)
            await asyncio.sleep(20)
            figures["CPU at rest, % of a core"] = round(
                100 * (cpu(pid) - used) / (time.monotonic() - began), 2
            )
            smallest, used = resident(pid), cpu(pid)
            await many(writer, states)
            committed, largest = time.monotonic(), smallest
            counted = worker.metric("flow_run_worker_states_told_total", type="COMPLETED") or 0.0
            while (
                worker.metric("flow_run_worker_states_told_total", type="COMPLETED") or 0.0
            ) < counted + states:
                largest = max(largest, resident(pid))
                await asyncio.sleep(0.1)
            took = time.monotonic() - committed
            figures["at once"] = states
            figures["told a second"] = round(states / took)
            figures["CPU a state, µs"] = round(1e6 * (cpu(pid) - used) / states, 1)
            figures["memory before, MiB"] = round(smallest / 2**20)
            figures["memory at most, MiB"] = round(largest / 2**20)
            await asyncio.sleep(PAUSE)
            while len(told.at) < states:
                await asyncio.sleep(0.1)
            figures["doubles"] = told.count - len(told.at)
            figures["memory after, MiB"] = round(resident(pid) / 2**20)
            if rate:
                seconds = await under_load(amqp_url, writer, told, rate)
                figures[f"at {rate:g} requests a second: median, s"] = round(statistics.median(seconds), 3)
                figures["highest, s"] = round(seconds[-1], 3)
        assert worker.terminate() == 0
    finally:
        worker.kill()
    print(json.dumps(figures, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--states", type=int, default=100_000)
    parser.add_argument("--before", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.0)
    given = parser.parse_args()
    more = {"states": given.states, "before": given.before, "rate": given.rate}
    with RabbitMQ() as broker, tempfile.TemporaryDirectory() as folder:
        if given.database == "sqlite":
            url = f"sqlite+aiosqlite:///{folder}/flow_runs.db"
            asyncio.run(measure(url, broker.url, Path(folder), **more))
            return
        with PostgreSQL() as cluster:
            asyncio.run(measure(cluster.create_database(), broker.url, Path(folder), **more))


if __name__ == "__main__":
    main()
