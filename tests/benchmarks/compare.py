"""``make bench``: the worker beside what a user would use instead, in turn on the same servers, with the ratios of each round.

Against Prefect's HTTP API, the worker that one would write first, and aio-pika's confirmed echo without a database. Each
round measures all of them once, so that a ratio compares what ran within the same minute. ``--rounds``, ``--quick``.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from uuid import uuid4

import httpx
import uvloop
from rich.console import Console
from rich.table import Table

from deploy.dev.postgresql import PostgreSQL
from deploy.dev.rabbitmq import RabbitMQ
from tests.conformance.prefect_server import PrefectServer
from worker.bench import measure

console = Console(width=130)

Measure = Callable[[], Awaitable[float]]


async def prefect_rate(api: str, seconds: float, clients: int = 16) -> float:
    """Creates a second over HTTP, by so many clients at once."""
    async with httpx.AsyncClient(base_url=api, timeout=60, limits=httpx.Limits(max_connections=clients)) as http:
        flow_id = (await http.post("/flows/", json={"name": f"bench-{uuid4()}"})).json()["id"]
        deadline = time.perf_counter() + seconds
        counts = await asyncio.gather(*(_post(http, flow_id, deadline) for _ in range(clients)))
        return sum(counts) / seconds


async def _post(http: httpx.AsyncClient, flow_id: str, deadline: float) -> int:
    count = 0
    while time.perf_counter() < deadline:
        body = {
            "flow_id": flow_id,
            "name": "bench",
            "parameters": {"number": count},
            "tags": ["bench"],
            "idempotency_key": str(uuid4()),
        }
        response = await http.post("/flow_runs/", json=body)
        count += response.status_code == 201
    return count


async def prefect_latency(api: str, requests: int = 100) -> float:
    """Median latency of one request at a time, in milliseconds."""
    async with httpx.AsyncClient(base_url=api, timeout=60) as http:
        flow_id = (await http.post("/flows/", json={"name": f"bench-{uuid4()}"})).json()["id"]
        taken = []
        for _ in range(requests):
            started = time.perf_counter()
            await http.post("/flow_runs/", json={"flow_id": flow_id, "idempotency_key": str(uuid4())})
            taken.append(time.perf_counter() - started)
        return statistics.median(taken) * 1000


async def compare(rounds: int, seconds: float, requests: int) -> None:
    with RabbitMQ() as broker, PostgreSQL() as cluster:
        own, first = cluster.create_database(), cluster.create_database()

        async def rate(database: str | None, program: str = "", share: float = 1.0) -> float:
            command = [sys.executable, "-m", f"tests.benchmarks.{program}"] if program else []
            done = await measure(broker.url, database, requests=int(requests * share), command=command)
            return done.throughput

        with PrefectServer(cluster.create_database()) as prefect:
            measures: dict[str, Measure] = {
                "worker, PostgreSQL": lambda: rate(own),
                "Prefect's HTTP API, PostgreSQL": lambda: prefect_rate(prefect.api, seconds),
                "first worker, PostgreSQL": lambda: rate(first, "first_worker", 0.15),
                "aio-pika's confirmed echo, no database": lambda: rate(None, "echo_worker", 0.5),
                "worker, Prefect's own database, PostgreSQL": lambda: into_prefect(broker.url, prefect, requests),
                "worker, SQLite": lambda: rate(None),
                "first worker, SQLite": lambda: rate(None, "first_worker", 0.1),
            }
            found: dict[str, list[float]] = {name: [] for name in measures}
            for number in range(rounds):
                for name, measured in measures.items():
                    found[name].append(await measured())
                    console.print(f"round {number + 1}: {name}: {found[name][-1]:,.0f}/s")
            http = [await prefect_latency(prefect.api) for _ in range(rounds)]
        # Its background services would take their share of these two cores from the worker, which needs none of them.
        alone = [await measure(broker.url, own, requests=300, rate=20.0) for _ in range(rounds)]
        # The most that is served while the producer works on the same cores, which the rates above leave out.
        offered = statistics.median(found["worker, PostgreSQL"])
        most = [await measure(broker.url, own, requests=int(offered * 5), rate=offered) for _ in range(rounds)]
        half = statistics.median(each.throughput for each in most) / 2
        loaded = [await measure(broker.url, own, requests=int(half * 10), rate=half) for _ in range(rounds)]
        show(found)
        console.print("Latency in milliseconds, medians of the rounds (min to max):")
        console.print(f"  Prefect's API, one request at a time: p50 {_spread(http)}")
        console.print(f"  worker, one request at a time: p50 {_spread(each.p50 for each in alone)}")
        console.print(
            f"  worker at {half:,.0f}/s, half of what it serves with its producer on the same cores: "
            f"p50 {_spread(each.p50 for each in loaded)}, p99 {_spread(each.p99 for each in loaded)}"
        )
        measurements = {"alone": alone, "most": most, "half": loaded}
        results = {"rates": found, "prefect_p50_ms": http}
        print(json.dumps({**results, **{name: [each.as_dict() for each in made] for name, made in measurements.items()}}))


def _spread(figures: Iterable[float | None]) -> str:
    present = [each for each in figures if each is not None]
    return f"{statistics.median(present):.1f} ({min(present):.1f} to {max(present):.1f})"


async def into_prefect(amqp_url: str, prefect: PrefectServer, requests: int) -> float:
    """Into a Prefect server's own database, for a flow that it has."""
    async with httpx.AsyncClient(base_url=prefect.api, timeout=60) as http:
        flow_id = (await http.post("/flows/", json={"name": f"bench-{uuid4()}"})).json()["id"]
    done = await measure(amqp_url, prefect.database_url, requests=requests, flow_id=flow_id)
    return done.throughput


def show(found: dict[str, list[float]]) -> None:
    table = Table(
        title=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; small bodies, one process"
    )
    for name in ("what", "median/s", "min", "max", "worker PostgreSQL is … times (median, min to max of the rounds)"):
        table.add_column(name, justify="left" if name == "what" else "right")
    ours = found["worker, PostgreSQL"]
    for name, rates in found.items():
        ratios = [mine / theirs for mine, theirs in zip(ours, rates, strict=True)]
        table.add_row(
            name,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f}",
            f"{max(rates):,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )
    console.print(table)
    sqlite = [mine / theirs for mine, theirs in zip(found["worker, SQLite"], found["first worker, SQLite"], strict=True)]
    console.print(
        f"On SQLite the worker is {statistics.median(sqlite):.1f} times the first worker ({min(sqlite):.1f} to {max(sqlite):.1f})."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it runs")
    options = parser.parse_args()
    uvloop.run(compare(1, 2.0, 5_000) if options.quick else compare(options.rounds, 5.0, 20_000))
