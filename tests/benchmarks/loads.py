"""Latency over offered load, on a broker with its default schedulers and on one with those for shared cores, in turn.

``python -m tests.benchmarks.loads [--rate N …] [--rounds N]``; seven seconds for each rate, round and broker.
"""

import argparse
import statistics
from collections.abc import Sequence

import uvloop
from rich.console import Console
from rich.table import Table

from deploy.dev.postgresql import PostgreSQL
from deploy.dev.rabbitmq import SCHEDULERS, RabbitMQ
from tests.benchmarks.database import tidy
from worker.bench import Measurement, Pace, measure
from worker.store import migrations

console = Console(width=130)
SECONDS = 5


async def loads(rates: Sequence[float], rounds: int) -> None:
    """Measure, and print a table."""
    with RabbitMQ(schedulers="") as default, RabbitMQ() as shared, PostgreSQL() as cluster:
        url = cluster.create_database()
        await migrations.upgrade(url)
        brokers = {"default": default, SCHEDULERS: shared}
        found: dict[tuple[float, str], list[Measurement]] = {}
        for number in range(rounds):
            for rate in rates:
                for name, broker in brokers.items():
                    done = await measure(broker.url, url, pace=Pace(rate=rate), requests=round(rate * SECONDS))
                    await tidy(url)
                    found.setdefault((rate, name), []).append(done)
                    console.print(f"round {number + 1}: {rate:,.0f}/s, {name}: p50 {done.p50} ms, p99 {done.p99} ms")
    shown = Table("requests/s", "schedulers", "p50 ms", "p99 ms", "smallest", "largest", title="one worker, PostgreSQL; medians")
    for (rate, name), made in found.items():
        p50, p99 = [each.p50 or 0.0 for each in made], [each.p99 or 0.0 for each in made]
        shown.add_row(
            f"{rate:,.0f}",
            name,
            f"{statistics.median(p50):.1f}",
            *(f"{figure:.1f}" for figure in (statistics.median(p99), min(p99), max(p99))),
        )
    console.print(shown)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, nargs="+", default=[1_000.0, 2_000.0, 3_000.0, 4_000.0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    uvloop.run(loads(options.rate, options.rounds))
