"""Measures longer cases than ``make bench``: large tables, a million requests through one worker,
several workers.

``python -m tests.benchmarks.large table|million|workers [--size N]``; each prints its table. It
takes minutes and gigabytes of disk.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import httpx
import uvloop
from rich.console import Console
from rich.table import Table

from tests.benchmarks.client import client_of_a_worker
from tests.benchmarks.database import tidy
from tests.conformance.prefect_server import PrefectServer
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from tests.support.supervisor import resident
from worker.bench import Fleet, Measurement, Requests, measure, open_load
from worker.broker.topology import Topology
from worker.store import migrations
from worker.tasks.collector import relieve_collector

console = Console(width=130)
PROGRAMS = {"beam.smp": "broker", "postgres": "database"}


async def grow(url: str, size: int) -> None:
    """Copy the newest run and its state to ``size`` runs, each with its own key and ids, and
    rebuild the indexes.
    """
    connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=60)
    try:
        # The copies refer to existing rows, so skip the checks of ten million foreign keys.
        await connection.execute("SET session_replication_role = replica; SET maintenance_work_mem = '1GB'")
        await connection.execute("SET synchronous_commit = off")
        indexes = await connection.fetch(
            "SELECT i.indexname AS name, i.indexdef AS definition FROM pg_indexes i WHERE tablename IN ('flow_run', 'flow_run_state') "
            "AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conname = i.indexname)"
        )
        for index in indexes:
            await connection.execute(f'DROP INDEX "{index["name"]}"')
        for table, changed in (
            (
                "flow_run",
                {
                    "id": "md5('run' || n)::uuid",
                    "state_id": "md5('state' || n)::uuid",
                    "idempotency_key": "'old-' || n",
                    "name": "'old-' || n",
                },
            ),
            ("flow_run_state", {"id": "md5('state' || n)::uuid", "flow_run_id": "md5('run' || n)::uuid"}),
        ):
            found = await connection.fetch(
                "SELECT column_name FROM information_schema.columns WHERE table_name = $1 AND table_schema = 'public' "
                "AND is_generated = 'NEVER'",
                table,
            )
            columns = [row["column_name"] for row in found]
            values = ", ".join(changed.get(column, f't."{column}"') for column in columns)
            names = ", ".join(f'"{column}"' for column in columns)
            await connection.execute(
                f"INSERT INTO {table} ({names}) SELECT {values} FROM (SELECT * FROM {table} ORDER BY created DESC LIMIT 1) t, "
                f"generate_series(1, {size}) n",
                timeout=3600,
            )
        for index in indexes:
            await connection.execute(index["definition"], timeout=3600)
    finally:
        await connection.close()
    await tidy(url)
    await asyncio.to_thread(os.sync)
    connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=60)
    try:
        runs, states, gigabytes = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM flow_run), (SELECT count(*) FROM flow_run_state), "
            "(pg_total_relation_size('flow_run') + pg_total_relation_size('flow_run_state')) / 1e9",
            timeout=600,
        )
    finally:
        await connection.close()
    console.print(
        f"filled: {runs:,} runs, {states:,} states, {gigabytes:.1f} GB with {len(indexes)} indexes besides keys"
    )


async def table(size: int, rounds: int) -> None:
    """Throughput with an empty and with a large table, in turn, in both kinds of schema."""
    with RabbitMQ() as broker, PostgreSQL() as cluster:
        cluster.stop()
        cluster.start("-c", "max_wal_size=8GB")
        for kind in ("our own schema", "Prefect's schema"):
            urls = [cluster.create_database(), cluster.create_database()]
            flows = [await (_flows(url) if kind.startswith("Prefect") else _own_schema(url)) for url in urls]
            # One run to copy, of another flow than the measured runs, which are deleted later.
            await _create_one(broker.url, urls[1], flows[1][1])
            await grow(urls[1], size)
            rates: tuple[list[float], list[float]] = ([], [])
            # The first round is not counted: it reads from disk, and writes each page in full after
            # the checkpoint.
            for number in range(rounds + 1):
                for index, url in enumerate(urls):
                    done = await measure(broker.url, url, requests=20_000, flow_id=flows[index][0])
                    await tidy(url, checkpoint=False)
                    if number:
                        rates[index].append(done.throughput)
                    console.print(
                        f"{kind}, round {number}, {('empty', 'large')[index]}: {done.throughput:,.0f}/s"
                    )
            ratios = [large / empty for empty, large in zip(*rates, strict=True)]
            console.print(
                f"{kind}: empty {statistics.median(rates[0]):,.0f}/s, {size:,} runs {statistics.median(rates[1]):,.0f}/s, "
                f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


async def _flows(url: str) -> tuple[UUID, UUID]:
    """Two flows in a Prefect server's database."""
    with PrefectServer(url) as prefect:
        async with httpx.AsyncClient(base_url=prefect.api, timeout=60) as http:
            first, second = [
                (await http.post("/flows/", json={"name": f"bench-{uuid4()}"})).json()["id"] for _ in range(2)
            ]
            return UUID(first), UUID(second)


async def _own_schema(url: str) -> tuple[UUID, UUID]:
    await migrations.upgrade(url)
    return uuid4(), uuid4()


async def _create_one(amqp_url: str, url: str, flow_id: UUID) -> None:
    async with client_of_a_worker(amqp_url, url) as client:
        await client.create_flow_run(flow_id=flow_id, idempotency_key="template")


async def million(size: int, rate: float, slices: int = 20) -> None:
    """Send ``size`` requests through one worker at a rate; print memory and latency per slice."""
    with RabbitMQ() as broker, PostgreSQL() as cluster, tempfile.TemporaryDirectory() as folder:
        topology = Topology(f"flow-runs-bench-{uuid4().hex[:8]}.create")
        url, part = cluster.create_database(), size // slices
        await migrations.upgrade(url)
        requests, start = Requests("small", uuid4(), "million-"), 0
        fleet = Fleet(broker.url, url, topology.queue, Path(folder))
        relieve_collector()
        async with (
            open_load(broker.url, topology, lambda number: requests(start + number)) as load,
            fleet.running(load.consumers_on_queue) as running,
        ):
            await load.warm_up()
            shown = Table(
                "requests",
                "memory MiB",
                "p50 ms",
                "p99 ms",
                title=f"{size:,} requests at {rate:,.0f}/s, one worker",
            )
            for start in range(0, size, part):  # read by the requests
                latencies = sorted((await load.at_rate(part, rate)).latencies)
                p50, p99 = (latencies[int(len(latencies) * share)] * 1000 for share in (0.5, 0.99))
                memory = resident(running.processes[0].pid) / 2**20
                console.print(f"{start + part:,}: {memory:.0f} MiB, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
                shown.add_row(f"{start + part:,}", f"{memory:.0f}", f"{p50:.1f}", f"{p99:.1f}")
        console.print(shown)


async def workers(size: int, rounds: int) -> None:
    """Throughput of one to four worker processes, and the load of the machine's cores meanwhile."""
    with RabbitMQ() as broker, PostgreSQL() as cluster:
        url = cluster.create_database()
        await migrations.upgrade(url)
        found: dict[int, list[tuple[Measurement, dict[str, float]]]] = {1: [], 2: [], 3: [], 4: []}
        for _ in range(rounds):
            for count in found:
                cores = Cores(size)
                done = await measure(broker.url, url, workers=count, requests=size, progress=cores.progress)
                await tidy(url)
                found[count].append((done, cores.busy))
                console.print(f"{count} workers: {done.throughput:,.0f}/s")
        names = ("broker", "database", "workers", "load", "all")
        shown = Table(
            *("workers", "median/s", "min", "max"),
            *(f"{name}, cores" for name in names),
            title=f"worker processes on one queue and one database, {os.cpu_count()} cores",
        )
        for count, made in found.items():
            rates = [done.throughput for done, _ in made]
            busy = [f"{statistics.median(cores[name] for _, cores in made):.2f}" for name in names]
            shown.add_row(
                str(count),
                f"{statistics.median(rates):,.0f}",
                f"{min(rates):,.0f}",
                f"{max(rates):,.0f}",
                *busy,
            )
        console.print(shown)


class Cores:
    """The number of cores that broker, database, workers and load kept busy, from the first reply
    to the last.

    Processes are found by name in ``/proc``, so other processes with these names should be idle.
    """

    def __init__(self, requests: int) -> None:
        self._missing = requests
        self._before: dict[str, float] = {}
        self.busy: dict[str, float] = {}

    def progress(self, count: int) -> None:
        """Count replies."""
        if not self._before:
            self._before = self._seconds()
        self._missing -= count
        if not self._missing:
            after = self._seconds()
            took = after.pop("clock") - self._before["clock"]
            self.busy = {name: (seconds - self._before[name]) / took for name, seconds in after.items()}

    def _seconds(self) -> dict[str, float]:
        found = dict.fromkeys(("broker", "database", "workers", "load"), 0.0)
        tick = os.sysconf("SC_CLK_TCK")
        for process in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = process.read_text().partition("(")[2].rpartition(")")
            except OSError:  # it has ended
                continue
            # User and system time of the process, then of its ended children. PostgreSQL has one
            # child for each connection.
            parent, *times = (int(rest.split()[field]) for field in (1, 11, 12, 13, 14))
            if process.parent.name == str(os.getpid()):
                found["load"] += sum(times[:2]) / tick
            elif name in PROGRAMS:
                found[PROGRAMS[name]] += sum(times) / tick
            elif parent == os.getpid():
                found["workers"] += sum(times[:2]) / tick
        # The machine's times: user, nice, system; then idle and I/O wait; then interrupts.
        fields = [int(field) for field in Path("/proc/stat").read_text().split(maxsplit=8)[1:8]]
        found["all"] = (sum(fields) - fields[3] - fields[4]) / tick
        return {**found, "clock": time.monotonic()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("table", "million", "workers"))
    parser.add_argument("--size", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=2_500.0)
    options = parser.parse_args()
    if options.what == "table":
        uvloop.run(table(options.size or 5_000_000, options.rounds))
    elif options.what == "million":
        uvloop.run(million(options.size or 1_000_000, options.rate))
    else:
        uvloop.run(workers(options.size or 30_000, options.rounds))
