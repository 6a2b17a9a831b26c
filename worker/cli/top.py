"""``top``: shows the workers and their queue live in the terminal."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding

from worker.cli.options import AmqpUrl, Queue, escape, out, run_async

if TYPE_CHECKING:
    from worker.operate.top import View, WorkerView
    from worker.settings import Settings

# Columns of a terminal that fits a worker in one line.
WIDE = 140

# A waiting event or state of this age, in seconds, is coloured. The alerts wait longer.
EVENTS_LATE = STATES_LATE = 60.0


def top(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL]...", help="The workers' side ports (default: WORKER_HTTP_PORT on this machine)."
        ),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two views.")] = 1.0,
    once: Annotated[
        bool,
        typer.Option(
            "--once", metavar="", help="Print one view and exit. The exit code is 1 if no worker answers."
        ),
    ] = False,
    amqp_url: AmqpUrl = None,
    queue: Queue = None,
) -> None:
    """Watch workers and their queue: rates, outcomes, times, connections. Ctrl-C ends it."""
    from worker.settings import load_settings

    for url in urls or []:
        if not url.startswith(("http://", "https://")):
            raise typer.BadParameter(f"'{url}' is no URL such as http://worker:8080", param_hint="URL")
    settings = load_settings(amqp_url=amqp_url, queue=queue)
    last = run_async(_watch(settings, urls or [f"http://127.0.0.1:{settings.http_port}"], interval, once))
    if all(worker.error is not None for worker in last.workers):
        raise typer.Exit(1)


async def _watch(settings: "Settings", urls: list[str], interval: float, once: bool) -> "View":
    """Show views until Ctrl-C, or return the first one."""
    from rich.live import Live

    from worker.operate.top import Top

    async with Top(urls, settings.amqp_url, settings.queue_names) as look:
        await asyncio.sleep(interval)
        if once:
            view = await look.view()
            out.print(_draw(view, settings.queue))
            return view
        with Live(
            _draw(await look.view(), settings.queue), console=out, auto_refresh=False, screen=out.is_terminal
        ) as live:
            while True:
                await asyncio.sleep(interval)
                live.update(_draw(await look.view(), settings.queue), refresh=True)


def _draw(view: "View", name: str) -> RenderableType:
    queue = view.queue
    if queue.error is not None:
        about = f"[bold]{escape(name)}[/]  [bold red]{escape(queue.error)}[/]"
    else:
        dead = f"[yellow]{queue.dead_letters}[/]" if queue.dead_letters else "0"
        about = (
            f"[bold]{escape(name)}[/]  ready [bold]{queue.ready}[/]  consumers {queue.consumers}  "
            f"dead letters {dead}{_events(view)}{_states(view)}   "
            f"in [bold]{view.incoming:,.0f}/s[/]  out [bold]{view.outgoing:,.0f}/s[/]"
        )
    if out.width >= WIDE:
        return Group(about, _table(view))
    return Group(about, *(each for worker in view.workers for each in _lines(worker)))


def _lines(worker: "WorkerView") -> list[RenderableType]:
    """A worker in several lines, for a terminal too narrow for a table."""
    if worker.error is not None:
        return [
            f"[bold]{escape(worker.url)}[/]",
            Padding(f"[bold red]{escape(worker.error)}[/]", (0, 0, 0, 2)),
        ]
    name, broker, database, *rates, held, batch, create, reply = _row(worker)
    what = ("created", "existing", "refused", "redelivered")
    pieces = [f"{each} {rate}/s" for each, rate in zip(what, rates, strict=True)]
    times = [f"batch {batch}", f"create {create}", f"reply {reply} (p50 / p99)"] if batch else []
    lines = (pieces, [f"in flight {held}", *times])
    return [
        f"[bold]{name}[/]  broker {broker}  database {database}",
        *(Padding("  ".join(line), (0, 0, 0, 2)) for line in lines),
    ]


def _table(view: "View") -> RenderableType:
    from rich.table import Table

    table = Table(expand=True)
    table.add_column("worker", no_wrap=True)
    table.add_column("broker")
    table.add_column("database")
    for heading in (
        "created/s",
        "existing/s",
        "refused/s",
        "redelivered/s",
        "in flight",
        "batch",
        "create p50/p99",
        "reply p50/p99",
    ):
        table.add_column(heading, justify="right")
    for worker in view.workers:
        table.add_row(*_row(worker))
    return table


def _events(view: "View") -> str:
    """The age of the oldest event that waits for Prefect's API, and the messages in the outbox."""
    if view.queue.events is None:
        return ""
    age = max((worker.events_age for worker in view.workers), default=0.0)
    waiting = f"events {age:,.0f} s late, {view.queue.events} messages"
    return f"  [yellow]{waiting}[/]" if age > EVENTS_LATE else f"  {waiting}"


def _states(view: "View") -> str:
    """How late states are published, if workers are set to publish them."""
    telling = [worker.states_lag for worker in view.workers if worker.states]
    if not telling and not any(worker.states is False for worker in view.workers):
        return ""
    waiting = f"states {max(telling):,.0f} s late" if telling else "nobody here tells states"
    return f"  [yellow]{waiting}[/]" if max(telling, default=0.0) > STATES_LATE else f"  {waiting}"


def _row(worker: "WorkerView") -> list[str]:
    if worker.error is not None:
        return [escape(worker.url), f"[bold red]{escape(worker.error)}[/]"]
    return [
        f"{escape(worker.url)} [dim]{escape(worker.version)}[/]",
        "[bold red]blocked[/]" if worker.broker and worker.blocked else _state(worker.broker),
        _state(worker.database),
        *(f"{rate:,.0f}" for rate in (worker.created, worker.existing, worker.refused, worker.redelivered)),
        _held(worker),
        "" if worker.batch is None else f"{worker.batch:.0f}",
        *(_milliseconds(each) for each in (worker.create, worker.reply)),
    ]


def _held(worker: "WorkerView") -> str:
    """Deliveries in flight, their size, and what blocks them."""
    held = f"{worker.in_flight} ({worker.held_bytes / 1024 / 1024:.0f} MiB)"
    if worker.paused:
        held = f"[yellow]{held} full[/]"
    if worker.dead_letters_held:
        held += f" [yellow]{worker.dead_letters_held} dead letters not taken[/]"
    return held


def _state(up: bool) -> str:
    return "[green]up[/]" if up else "[bold red]away[/]"


def _milliseconds(percentiles: tuple[float, float] | None) -> str:
    return "" if percentiles is None else f"{percentiles[0] * 1000:.1f} / {percentiles[1] * 1000:.1f} ms"
