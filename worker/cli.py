"""The command line: reads options, prints for people, maps errors to exit codes (0, 1 a failure, 2 wrong usage or settings)."""

import asyncio
import sys
from collections.abc import Coroutine
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
import structlog
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from worker.bench import BenchFailed, Measurement, draw, measure
from worker.broker.session import BrokerRefused, BrokerUnavailable, Session
from worker.broker.topology import Topology, TopologyMismatch
from worker.client import ClientError, FlowRunClient
from worker.contract.errors import Fault
from worker.observability.logs import configure_logging
from worker.service import serve
from worker.settings import SettingsError, load_settings, redact
from worker.store import StoreError, migrations

T = TypeVar("T")


class BenchBody(str, Enum):
    """Sizes of request bodies."""

    small = "small"
    typical = "typical"
    large = "large"


app = typer.Typer(
    name="flow-run-worker",
    help="Create Prefect flow runs from a RabbitMQ queue: each request once, each answered as Prefect's API would.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
topology_app = typer.Typer(help="The queues and the exchange at the broker.", no_args_is_help=True)
db_app = typer.Typer(help="The database's schema.", no_args_is_help=True)
app.add_typer(topology_app, name="topology")
app.add_typer(db_app, name="db")

out = Console()
err = Console(stderr=True)

AmqpUrl = Annotated[
    str | None,
    typer.Option("--amqp-url", help="The broker, amqp:// or amqps://. [WORKER_AMQP_URL]", show_default=False),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="sqlite+aiosqlite:///FILE or postgresql+asyncpg://… [WORKER_DATABASE_URL]",
        show_default=False,
    ),
]
Queue = Annotated[str | None, typer.Option("--queue", help="The request queue. [WORKER_QUEUE]", show_default=False)]


def main() -> None:
    """The console script: runs the command, and turns what a user can mend into one readable line."""
    try:
        app()
    except (SettingsError, ValidationError) as error:
        _fail(str(error), code=2)
    except (ClientError, BenchFailed, StoreError, BrokerRefused, BrokerUnavailable, TopologyMismatch, Fault, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def run(
    amqp_url: AmqpUrl = None,
    database_url: DatabaseUrl = None,
    queue: Queue = None,
    prefetch: Annotated[int | None, typer.Option(help="Deliveries held at once. [WORKER_PREFETCH]", show_default=False)] = None,
    batch_max: Annotated[
        int | None, typer.Option(help="Requests in one transaction at the most. [WORKER_BATCH_MAX]", show_default=False)
    ] = None,
    migrate: Annotated[
        bool | None,
        typer.Option(
            "--migrate/--no-migrate",
            help="Bring a PostgreSQL schema up to date first (SQLite's always is). [WORKER_MIGRATE]",
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json. [WORKER_LOG_FORMAT]", show_default=False)] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error. [WORKER_LOG_LEVEL]", show_default=False)
    ] = None,
) -> None:
    """Serve requests until SIGTERM or Ctrl-C, then finish what is in flight."""
    settings = load_settings(
        amqp_url=amqp_url,
        database_url=database_url,
        queue=queue,
        prefetch=prefetch,
        batch_max=batch_max,
        migrate=migrate,
        log_format=log_format,
        log_level=log_level,
    )
    configure_logging(settings.log_format, settings.log_level)
    try:
        _run(serve(settings))
    except (StoreError, BrokerRefused, TopologyMismatch) as error:
        structlog.get_logger(__name__).error("cannot_start", error=str(error))
        sys.exit(1)


@app.command()
def create(
    flow_id: Annotated[str | None, typer.Option(help="The flow that is to be run (a UUID).", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="The run's name; two random words else.", show_default=False)] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Create once per flow and key; later get the same run.", show_default=False)
    ] = None,
    parameters: Annotated[str | None, typer.Option(help="The flow's parameters, a JSON object.", show_default=False)] = None,
    context: Annotated[str | None, typer.Option(help="A JSON object.", show_default=False)] = None,
    state: Annotated[
        str | None, typer.Option(help="A state type such as SCHEDULED, or a state as JSON.", show_default=False)
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may be given several times.", show_default=False)] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be given several times.", show_default=False)] = None,
    flow_version: Annotated[str | None, typer.Option(show_default=False)] = None,
    deployment_id: Annotated[str | None, typer.Option(show_default=False)] = None,
    parent_task_run_id: Annotated[str | None, typer.Option(show_default=False)] = None,
    infrastructure_document_id: Annotated[str | None, typer.Option(show_default=False)] = None,
    empirical_policy: Annotated[str | None, typer.Option(help="A JSON object.", show_default=False)] = None,
    work_pool_name: Annotated[str | None, typer.Option(show_default=False)] = None,
    work_queue_name: Annotated[str | None, typer.Option(show_default=False)] = None,
    job_variables: Annotated[str | None, typer.Option(help="A JSON object.", show_default=False)] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", help="The whole body from a file, or - for standard input.", show_default=False),
    ] = None,
    no_reply: Annotated[bool, typer.Option("--no-reply", help="Only publish; print the message id.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the reply.")] = 30.0,
    amqp_url: AmqpUrl = None,
    queue: Queue = None,
) -> None:
    """Send one request and print the flow run record (JSON on standard output)."""
    settings = load_settings(amqp_url=amqp_url, queue=queue)
    request: bytes | dict[str, Any]
    if json_file is not None:
        request = sys.stdin.buffer.read() if json_file == "-" else Path(json_file).read_bytes()
    else:
        request = {
            "flow_id": flow_id,
            "name": name,
            "idempotency_key": idempotency_key,
            "parameters": _json(parameters, "--parameters"),
            "context": _json(context, "--context"),
            "state": _state(state),
            "tags": tag,
            "labels": dict(_label(each) for each in label) if label else None,
            "flow_version": flow_version,
            "deployment_id": deployment_id,
            "parent_task_run_id": parent_task_run_id,
            "infrastructure_document_id": infrastructure_document_id,
            "empirical_policy": _json(empirical_policy, "--empirical-policy"),
            "work_pool_name": work_pool_name,
            "work_queue_name": work_queue_name,
            "job_variables": _json(job_variables, "--job-variables"),
        }

    async def send() -> None:
        async with FlowRunClient(settings.amqp_url, queue=settings.queue, timeout=timeout) as client:
            if no_reply:
                print(await client.publish(request))
                return
            outcome = await client.request(request)
            assert outcome.record is not None
            if outcome.created:
                err.print("[green]201 created[/]")
            else:
                err.print("[yellow]200 existing[/]: a run with this key was there already")
            record = outcome.record.model_dump_json(indent=2)
            if out.is_terminal:
                out.print_json(record)
            else:
                print(record)

    _run(send())


@app.command()
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

    measurements = _run(measure_all())
    if json_output:
        print(orjson.dumps([each.as_dict() for each in measurements], option=orjson.OPT_INDENT_2).decode())
    else:
        out.print(_bench_table(measurements))
    if plot is not None:
        draw(measurements, plot)
        err.print(f"Picture: {plot}", highlight=False)


def _bench_table(measurements: list[Measurement]) -> Table:
    first = measurements[0]
    table = Table(title=f"{first.workers} worker(s), {first.database}, {first.body} bodies, {first.requests:,} requests")
    for name in ("offered", "served", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "CPU µs/request", "memory MiB"):
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


def _json(text: str | None, option: str) -> Any:
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(f"is not JSON: {error}", param_hint=option) from None


def _state(text: str | None) -> Any:
    if text is None or text.lstrip().startswith("{"):
        return _json(text, "--state")
    return {"type": text.upper()}


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"'{text}' is not NAME=VALUE", param_hint="--label")
    return name, value


@topology_app.command("declare")
def topology_declare(amqp_url: AmqpUrl = None, queue: Queue = None) -> None:
    """Declare the queues, the exchange and the binding. Harmless when they stand already."""
    settings = load_settings(amqp_url=amqp_url, queue=queue)
    topology = Topology.from_queue_name(settings.queue)

    async def declare() -> None:
        session = await Session.open(settings.amqp_url, topology, name="flow-run-worker topology")
        await session.close()

    _run(declare())
    out.print(f"Declared at {redact(settings.amqp_url)}:", highlight=False)
    _print_topology(topology)


@topology_app.command("show")
def topology_show(queue: Queue = None) -> None:
    """Show what the worker declares; asks no broker."""
    _print_topology(Topology.from_queue_name(load_settings(queue=queue).queue))


def _print_topology(topology: Topology) -> None:
    table = Table("what", "name", "properties")
    table.add_row("queue", topology.queue, _arguments({"durable": True, **topology.queue_arguments}))
    table.add_row("queue", topology.dead_letter_queue, _arguments({"durable": True, **topology.dead_letter_queue_arguments}))
    if topology.exchange is not None:
        table.add_row("exchange", topology.exchange, "direct, durable")
        table.add_row("binding", topology.routing_key, f"{topology.exchange} -> {topology.queue}")
    out.print(table)


def _arguments(arguments: dict[str, Any]) -> str:
    return "\n".join("durable" if name == "durable" else f"{name}: {value!r}" for name, value in arguments.items())


@db_app.command("upgrade")
def db_upgrade(database_url: DatabaseUrl = None) -> None:
    """Create the tables or bring them up to date. Never touches a Prefect server's database."""
    settings = load_settings(database_url=database_url)
    before, after = _run(migrations.upgrade(settings.database_url))
    change = f"already at {after}" if before == after else f"{before or 'empty'} -> {after}"
    out.print(f"{redact(settings.database_url)}: {change}", highlight=False, soft_wrap=True)


@db_app.command("current")
def db_current(database_url: DatabaseUrl = None) -> None:
    """Show which kind of database this is and its schema revision."""
    settings = load_settings(database_url=database_url)
    out.print(_run(migrations.current(settings.database_url)), highlight=False, soft_wrap=True)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where there is one (not on Windows)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def _fail(message: str, code: int = 1) -> NoReturn:
    err.print("[bold red]error[/]:", escape(message), highlight=False, soft_wrap=True)
    sys.exit(code)
