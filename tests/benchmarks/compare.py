"""``make bench``: compares the worker with its alternatives, in turn on the same servers, and
prints the ratios of each round.

The alternatives are Prefect's HTTP API, a simple first worker, and aio-pika's confirmed echo
without a database. Each round measures all of them once, so a ratio compares figures of the same
minute. ``--rounds``, ``--quick``.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import product
from uuid import UUID, uuid4

import httpx
import uvloop
from rich.console import Console
from rich.table import Table

from tests.benchmarks.client import client_of_a_worker
from tests.benchmarks.database import tidy
from tests.conformance.prefect_server import VERSION, PrefectServer
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from worker.bench import Measurement, Pace, Requests, measure
from worker.store import migrations

console = Console(width=130)

Measure = Callable[[], Awaitable[float]]

OURS = "worker, PostgreSQL"
API = "Prefect's HTTP API, PostgreSQL"
# Prefect's API emits events too, so its figures are compared with this row.
EVENTS = "worker, a Prefect server's database, with events"
API_ALONE = "Prefect's HTTP API, one at a time"
API_HALF = "Prefect's HTTP API, at half of its load"
# Shares of the worker's highest throughput.
SHARES = {"a third": 1 / 3, "half": 1 / 2}
# The number of concurrent HTTP clients at which Prefect's API is fastest.
CLIENTS = 16


class Prefect:
    """A Prefect server's HTTP API, and a flow in it."""

    def __init__(self, http: httpx.AsyncClient, flow_id: UUID) -> None:
        self._http = http
        self.flow_id = flow_id

    @classmethod
    async def at(cls, http: httpx.AsyncClient) -> "Prefect":
        """Make the flow."""
        made = await http.post("/flows/", json={"name": f"bench-{uuid4()}"})
        return cls(http, UUID(made.json()["id"]))

    async def rate(self, seconds: float) -> float:
        """Requests a second, by several clients at once."""
        deadline = time.perf_counter() + seconds
        counts = await asyncio.gather(*(self._until(deadline) for _ in range(CLIENTS)))
        return sum(counts) / seconds

    async def latencies(self, requests: int) -> list[float]:
        """Latencies of single requests in sequence, in milliseconds."""
        await self._until(time.perf_counter() + 1)
        body = Requests("small", self.flow_id, f"{uuid4()}-")
        return [await _timed(self._create(body(number))) for number in range(requests)]

    async def latencies_at(self, rate: float, requests: int) -> list[float]:
        """Latencies at ``rate`` requests a second (open loop), in milliseconds from due time."""
        body = Requests("small", self.flow_id, f"{uuid4()}-")
        started = time.perf_counter()

        async def one(number: int) -> float:
            due = started + number / rate
            await asyncio.sleep(due - time.perf_counter())
            await self._create(body(number))
            return (time.perf_counter() - due) * 1000

        return await asyncio.gather(*map(one, range(requests)))

    async def _until(self, deadline: float) -> int:
        body, count = Requests("small", self.flow_id, f"{uuid4()}-"), 0
        while time.perf_counter() < deadline:
            await self._create(body(count))
            count += 1
        return count

    async def _create(self, body: bytes) -> None:
        response = await self._http.post(
            "/flow_runs/", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 201, response.text


async def client_latencies(amqp_url: str, database_url: str, requests: int) -> list[float]:
    """Latencies of single requests in sequence by the Python client, in milliseconds."""
    async with client_of_a_worker(amqp_url, database_url) as client:
        body = Requests("small", uuid4(), f"{uuid4()}-")
        for number in range(-300, 0):
            await client.request(body(number))
        return [await _timed(client.request(body(number))) for number in range(requests)]


async def _timed(request: Awaitable[object]) -> float:
    started = time.perf_counter()
    await request
    return (time.perf_counter() - started) * 1000


class Comparison:
    """The servers of one run, and the measurements on them.

    Args:
        requests: sent for one measurement of the worker's throughput; slower programs get fewer.
        seconds: duration of one measurement of Prefect's throughput.
    """

    def __init__(self, broker: RabbitMQ, cluster: PostgreSQL, requests: int, seconds: float) -> None:
        self._broker = broker
        self._requests = requests
        self._seconds = seconds
        self._own, self._first, self._prefect = (cluster.create_database() for _ in range(3))
        self.rates: dict[str, list[float]] = {}
        self.latencies: dict[str, list[float]] = {}
        self.measurements: dict[str, list[Measurement]] = {}

    async def prepare(self) -> None:
        """The schemas."""
        for url in (self._own, self._first):
            await migrations.upgrade(url)

    async def throughput(self, rounds: int) -> None:
        """Measure the requests a second of each."""
        with PrefectServer(self._prefect) as server:
            async with httpx.AsyncClient(
                base_url=server.api, timeout=60, limits=httpx.Limits(max_connections=CLIENTS)
            ) as http:
                prefect = await Prefect.at(http)
                measures: dict[str, Measure] = {
                    OURS: lambda: self._rate(self._own),
                    API: lambda: prefect.rate(self._seconds),
                    "first worker, PostgreSQL": lambda: self._rate(self._first, "first_worker", 0.15),
                    "aio-pika's confirmed echo, no database": lambda: self._rate(None, "echo_worker", 0.5),
                    "worker, a Prefect server's database": lambda: self._rate(
                        self._prefect, flow_id=prefect.flow_id
                    ),
                    EVENTS: lambda: self._rate(
                        self._prefect,
                        flow_id=prefect.flow_id,
                        settings={"WORKER_PREFECT_API_URL": server.api},
                    ),
                    "worker, SQLite": lambda: self._rate(None),
                    "first worker, SQLite": lambda: self._rate(None, "first_worker", 0.1),
                }
                for number in range(rounds):
                    for name, measured in measures.items():
                        self.rates.setdefault(name, []).append(await measured())
                        console.print(f"round {number + 1}: {name}: {self.rates[name][-1]:,.0f}/s")

    async def latency(self, rounds: int) -> None:
        """Measure the latency of one request, alone and at shares of the highest load that is
        served with the producer on the same cores.

        Each is measured in turn. Prefect's server runs only while it is measured, since its
        background services use the same cores.
        """
        alone = self._requests // 20
        for number in range(rounds):
            with PrefectServer(self._prefect) as server:
                async with httpx.AsyncClient(base_url=server.api, timeout=60) as http:
                    prefect = await Prefect.at(http)
                    self._keep(API_ALONE, await prefect.latencies(alone // 5))
                    self._keep(
                        API_HALF,
                        await prefect.latencies_at(statistics.median(self.rates[API]) / 2, alone // 5),
                    )
            one = await self._measure("one at a time", Pace(concurrency=1), alone)
            self._keep(
                "worker, Python client, one at a time",
                await client_latencies(self._broker.url, self._own, alone),
            )
            most = await self._measure(
                "most", Pace(rate=statistics.median(self.rates[OURS])), self._requests * 2
            )
            for name, share in SHARES.items():
                await self._measure(name, Pace(rate=round(most.throughput * share)), self._requests)
            third, half = (self.measurements[name][-1] for name in SHARES)
            console.print(
                f"round {number + 1}: one at a time: Prefect's p50 {self.latencies[API_ALONE][-1]:.1f} ms, worker's {one.p50} ms; "
                f"at half of its load: Prefect's p50 {self.latencies[API_HALF][-1]:.1f} ms, "
                f"worker's, {half.rate:,.0f}/s, {half.p50} ms, p99 {half.p99} ms, at a third p99 {third.p99} ms"
            )

    def _keep(self, name: str, latencies: Sequence[float]) -> None:
        self.latencies.setdefault(name, []).append(round(statistics.median(latencies), 2))

    async def _measure(self, name: str, pace: Pace, requests: int) -> Measurement:
        done = await measure(self._broker.url, self._own, pace=pace, requests=requests)
        await tidy(self._own)
        self.measurements.setdefault(name, []).append(done)
        return done

    async def _rate(
        self,
        database: str | None,
        program: str = "",
        share: float = 1.0,
        flow_id: UUID | None = None,
        settings: dict[str, str] | None = None,
    ) -> float:
        done = await measure(
            self._broker.url,
            database,
            requests=int(self._requests * share),
            command=[sys.executable, "-m", f"tests.benchmarks.{program}"] if program else [],
            flow_id=flow_id,
            settings=settings,
        )
        if database is not None:
            await tidy(database)
        return done.throughput


async def compare(rounds: int, seconds: float, requests: int) -> None:
    """Measure everything, and print it."""
    with RabbitMQ() as broker, PostgreSQL() as cluster:
        comparison = Comparison(broker, cluster, requests, seconds)
        await comparison.prepare()
        await comparison.throughput(rounds)
        await comparison.latency(rounds)
    show(comparison)
    measurements = {name: [asdict(each) for each in made] for name, made in comparison.measurements.items()}
    print(
        json.dumps(
            {"rates": comparison.rates, "latencies_ms": comparison.latencies, "measurements": measurements}
        )
    )


def show(comparison: Comparison) -> None:
    """The tables."""
    title = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, Prefect {VERSION}; small bodies, one worker process"
    table = Table("what", "requests/s", "the worker on PostgreSQL is … times that", title=title)
    ours = comparison.rates[OURS]
    for name, rates in comparison.rates.items():
        table.add_row(name, _spread(rates, 0), _spread(_ratios(ours, rates), 1))
    console.print(table)
    events = _ratios(comparison.rates[EVENTS], comparison.rates[API])
    console.print(
        f"With events, as the API has them, the worker is {_spread(events, 0)} times Prefect's HTTP API."
    )
    sqlite = _ratios(comparison.rates["worker, SQLite"], comparison.rates["first worker, SQLite"])
    console.print(f"On SQLite the worker is {_spread(sqlite, 1)} times the first worker.")
    latencies, made = comparison.latencies, comparison.measurements
    api = latencies[API_ALONE]
    table = Table(
        "one request at a time, or as said",
        "p50 ms",
        "p99 ms",
        "Prefect's p50, one at a time, is … times the p50",
    )
    for name, medians in latencies.items():
        table.add_row(name, _spread(medians, 2), "", _spread(_ratios(api, medians), 1))
    for name, measured in made.items():
        p50, p99 = (
            [figure or 0.0 for figure in figures]
            for figures in zip(*((each.p50, each.p99) for each in measured), strict=True)
        )
        rate = (
            ""
            if name == "one at a time"
            else f" ({_spread([each.throughput for each in measured], 0)} served a second)"
        )
        table.add_row(
            f"worker, {name}{rate}", _spread(p50, 2), _spread(p99, 1), _spread(_ratios(api, p50), 1)
        )
    console.print(table)
    for share, name in product(SHARES, (API_HALF, API_ALONE)):
        p99 = [each.p99 or 0.0 for each in made[share]]
        below = sum(ours < theirs for ours, theirs in zip(p99, latencies[name], strict=True))
        times = _spread(_ratios(p99, latencies[name]), 2)
        console.print(
            f"p99 at {share} of the load is {times} times the p50 of {name}; below it in {below} of {len(p99)} rounds."
        )


def _ratios(these: Iterable[float], those: Iterable[float]) -> list[float]:
    return [this / that for this, that in zip(these, those, strict=True)]


def _spread(figures: Sequence[float], digits: int) -> str:
    return (
        f"{statistics.median(figures):,.{digits}f} ({min(figures):,.{digits}f} to {max(figures):,.{digits}f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it runs")
    options = parser.parse_args()
    uvloop.run(compare(1, 2.0, 5_000) if options.quick else compare(options.rounds, 5.0, 20_000))
