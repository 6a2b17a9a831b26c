"""``bench``: throughput and latency on this machine."""

import signal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from worker.cli.options import AmqpUrl, DatabaseUrl, err, out, progress_bar, run_async

if TYPE_CHECKING:
    from rich.table import Table

    from worker.bench import Measurement


class BenchBody(str, Enum):
    """Sizes of request bodies."""

    small = "small"
    typical = "typical"
    large = "large"


# They take some seconds on two cores. Large ones are 200 MB at the broker.
REQUESTS = {BenchBody.small: 20_000, BenchBody.typical: 20_000, BenchBody.large: 1_000}


def bench(
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="Requests each time.", show_default="20000, with large bodies 1000"),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            min=0.1, help="Requests a second. Without it, as fast as possible. May be given several times."
        ),
    ] = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Requests under way at a time. May be given several times."),
    ] = None,
    body: Annotated[
        BenchBody, typer.Option(help="small, typical (2 KB of parameters) or large (200 KB).")
    ] = BenchBody.small,
    repeat: Annotated[int, typer.Option(min=1, help="How often to run each measurement.")] = 1,
    json_output: Annotated[
        bool, typer.Option("--json", metavar="", help="Print JSON instead of a table.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw throughput and latency over offered load (needs matplotlib).")
    ] = None,
    flow_id: Annotated[
        UUID | None, typer.Option(help="An existing flow. Needed in a Prefect server's database.")
    ] = None,
    amqp_url: AmqpUrl = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Measure throughput and latency on this broker and a database. The database is a temporary
    SQLite file by default.

    The queue and the runs are created for the benchmark and removed afterwards. A database that you
    name must have its schema (db upgrade).
    """
    from pydantic_core import to_json

    from worker.bench import Measurement, Pace, draw, measure, require_drawable
    from worker.settings import load_settings

    if plot is not None:
        if not rate:
            raise typer.BadParameter(
                "is drawn over offered load: give --rate, better several of them", param_hint="--plot"
            )
        require_drawable(plot)
    settings = load_settings(amqp_url=amqp_url, database_url=database_url)
    paces = [
        *(Pace(concurrency=each) for each in concurrency or ()),
        *(Pace(rate=each) for each in sorted(rate or ())),
    ]
    count = requests or REQUESTS[body]

    async def measure_all() -> list[Measurement]:
        measurements = []
        with progress_bar() as progress:
            for pace in [pace for pace in paces or [Pace()] for _ in range(repeat)]:
                bar = progress.add_task(str(pace), total=count)
                measurements.append(
                    await measure(
                        settings.amqp_url,
                        settings.database_url if database_url else None,
                        pace=pace,
                        workers=workers,
                        requests=count,
                        body=body.value,
                        flow_id=flow_id,
                        progress=lambda more, bar=bar: progress.advance(bar, more),  # type: ignore[misc]  # no inference
                    )
                )
        return measurements

    # SIGTERM cleans up as Ctrl-C does. A shell starts background commands with SIGINT ignored, so
    # set both handlers.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    measurements = run_async(measure_all())
    if json_output:
        print(to_json(measurements, indent=2).decode())
    else:
        out.print(_bench_table(measurements))
    if plot is not None:
        draw(measurements, plot)
        err.print(f"Picture: {plot}", highlight=False)


def _bench_table(measurements: "list[Measurement]") -> "Table":
    from rich.table import Table

    from worker.bench import Pace

    first = measurements[0]
    table = Table(
        title=f"workers: {first.workers}, {first.database}, {first.body} bodies, {first.requests:,} requests"
    )
    for name in ("offered", "served", "p50 ms", "p90", "p99", "p99.9", "CPU µs each", "MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in measurements:
        latencies = (
            "-" if value is None else f"{value:.1f}" for value in (each.p50, each.p90, each.p99, each.p999)
        )
        table.add_row(
            str(Pace(each.rate, each.concurrency)),
            f"{each.throughput:,.0f}/s",
            *latencies,
            f"{each.cpu:.0f}",
            f"{each.memory:.0f}",
        )
    return table
