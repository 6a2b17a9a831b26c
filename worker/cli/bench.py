"""``bench``: throughput and latency on this machine."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from worker.bench import Measurement, draw, measure
from worker.cli.options import AmqpUrl, DatabaseUrl, err, out, run_async
from worker.settings import load_settings


class BenchBody(str, Enum):
    """Sizes of request bodies."""

    small = "small"
    typical = "typical"
    large = "large"


def bench(
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    requests: Annotated[int, typer.Option(min=1, help="How many requests.")] = 20_000,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Offered load in requests a second; as fast as possible without. May be given several times."),
    ] = None,
    body: Annotated[BenchBody, typer.Option(help="small, typical (2 KB of parameters) or large (200 KB).")] = BenchBody.small,
    repeat: Annotated[int, typer.Option(min=1, help="How often each.")] = 1,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw throughput and latency over offered load (needs matplotlib).")] = None,
    amqp_url: AmqpUrl = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Measure throughput and latency on this broker and a database (a temporary SQLite file by default)."""
    settings = load_settings(amqp_url=amqp_url)

    async def measure_all() -> list[Measurement]:
        measurements = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=err, transient=True) as progress:
            for each in [each for each in rate or [0.0] for _ in range(repeat)]:
                bar = progress.add_task(f"{each:g}/s" if each else "as fast as possible", total=requests)
                measurements.append(
                    await measure(
                        settings.amqp_url,
                        database_url,
                        workers=workers,
                        requests=requests,
                        rate=each,
                        body=body.value,
                        progress=lambda count, bar=bar: progress.advance(bar, count),  # type: ignore[misc]  # no inference
                    )
                )
        return measurements

    measurements = run_async(measure_all())
    if json_output:
        print(orjson.dumps([each.as_dict() for each in measurements], option=orjson.OPT_INDENT_2).decode())
    else:
        out.print(_bench_table(measurements))
    if plot is not None:
        draw(measurements, plot)
        err.print(f"Picture: {plot}", highlight=False)


def _bench_table(measurements: list[Measurement]) -> Table:
    first = measurements[0]
    table = Table(title=f"workers: {first.workers}, {first.database}, {first.body} bodies, {first.requests:,} requests")
    for name in ("offered", "served", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "CPU µs each", "MiB"):
        table.add_column(name, justify="right")
    for each in measurements:
        latencies = ("-" if value is None else f"{value:.1f}" for value in (each.p50, each.p90, each.p99, each.p999))
        table.add_row(
            f"{each.rate:,.0f}/s" if each.rate else "all at once",
            f"{each.throughput:,.0f}/s",
            *latencies,
            f"{each.cpu:.0f}",
            f"{each.memory:.0f}",
        )
    return table
