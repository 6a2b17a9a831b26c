"""``db``: the database's schema, and its old runs."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from worker.cli.options import DatabaseUrl, age, err, out, progress_bar, run_async

if TYPE_CHECKING:
    from worker.store.pruning import OldRuns, Pruning

db_app = typer.Typer(help="The database: its schema, and its old runs.", no_args_is_help=True)

# Runs in a batch, and the pause after it in seconds. The batch takes PostgreSQL about a tenth of a
# second. A request with a key in it waits for that. The pause leaves half of the time to the
# workers. Measured by tests/benchmarks/prune.py.
BATCH, PAUSE = 500, 0.1
# The limit of Prefect's own vacuum. A request in flight must find the run of its key.
YOUNGEST = timedelta(hours=1)


@db_app.command("upgrade")
def db_upgrade(database_url: DatabaseUrl = None) -> None:
    """Create the tables, or bring them up to date. Changes no Prefect server's database."""
    from worker.observability.redaction import redact
    from worker.settings import load_settings
    from worker.store import migrations

    settings = load_settings(database_url=database_url)
    before, after = run_async(migrations.upgrade(settings.database_url, settings.database_kind))
    change = f"nothing to upgrade ({after})" if before == after else f"{before or 'empty'} -> {after}"
    out.print(f"{redact(settings.database_url)}: {change}", highlight=False, soft_wrap=True)


@db_app.command("current")
def db_current(database_url: DatabaseUrl = None) -> None:
    """Show the kind of the database, and the revision of its schema."""
    from worker.settings import load_settings
    from worker.store import migrations

    settings = load_settings(database_url=database_url)
    out.print(
        run_async(migrations.current(settings.database_url, settings.database_kind)),
        highlight=False,
        soft_wrap=True,
    )


def _age(text: str) -> timedelta:
    older_than = age(text)
    if older_than is None:
        raise typer.BadParameter(f"'{text}' is not an age such as 90d, 12h or 2w")
    if older_than < YOUNGEST:
        raise typer.BadParameter("must be at least 1h: a request on its way must find the run of its key")
    if older_than > datetime.now(UTC) - datetime(1970, 1, 1, tzinfo=UTC):
        raise typer.BadParameter(f"'{text}' reaches back to before 1970")
    return older_than


@db_app.command("prune")
def db_prune(
    older_than: Annotated[timedelta, typer.Option(parser=_age, metavar="AGE", help="90d, 12h or 2w, say.")],
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="Delete runs in this state. May be given several times. "
            r"[default: completed, failed, cancelled, crashed]"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Most runs in one transaction.")] = BATCH,
    pause: Annotated[float, typer.Option(min=0, help="Seconds to wait after each transaction.")] = PAUSE,
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="Only count them.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", metavar="", help="Don't ask. It asks on a terminal only.")
    ] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Delete old runs with their states; in a Prefect server's database also with their task runs,
    logs, inputs and artifacts.

    A run in a final state is as old as its end. Any other is as old as its state, and is deleted
    only if --state names that.

    A deleted run frees its idempotency key: the next request with that key makes a new run.

    Ctrl-C or SIGTERM end it after the current transaction. Run it again for the rest.
    """
    from worker.observability.redaction import redact
    from worker.settings import load_settings
    from worker.store.pruning import open_pruning

    settings = load_settings(database_url=database_url)
    before, states = datetime.now(UTC) - older_than, _states(state)

    def opened() -> AbstractAsyncContextManager["Pruning"]:
        return open_pruning(settings.database_url, settings.database_kind, before=before, states=states)

    found = run_async(_count(opened()))
    if found is None:
        _interrupted("Interrupted; nothing was deleted.")
    total = sum(each.count for each in found if each.chosen)
    where = f"{redact(settings.database_url)}, before {before:%Y-%m-%d %H:%M} UTC:"
    out.print(where, highlight=False, soft_wrap=True)
    _tell(found, total)
    if dry_run or not total:
        return
    err.print(
        "[yellow]A deleted run frees its idempotency key:[/] the next request with that key makes a new run.",
        highlight=False,
    )
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete {total:,} runs?", abort=True)
    if not run_async(_delete(opened(), total, batch, pause)):
        _interrupted("Interrupted; run it again for the rest.")


def _interrupted(message: str) -> NoReturn:
    err.print(message)
    sys.exit(1)


def _states(names: Sequence[str] | None) -> frozenset[str]:
    from worker.contract.state import TERMINAL_TYPES, StateType

    if not names:
        return TERMINAL_TYPES
    known = {each.value for each in StateType}
    for name in names:
        if name.upper() not in known:
            raise typer.BadParameter(
                f"'{name}' is none of {', '.join(sorted(known)).lower()}", param_hint="--state"
            )
    return frozenset(name.upper() for name in names)


@asynccontextmanager
async def _stop_signals() -> AsyncIterator[asyncio.Event]:
    """An event that the first SIGINT or SIGTERM sets. A second one ends the process as usual."""
    stopping, loop, both = asyncio.Event(), asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)

    def remove() -> None:
        for each in both:
            loop.remove_signal_handler(each)

    def stop() -> None:
        stopping.set()
        remove()

    for each in both:
        loop.add_signal_handler(each, stop)
    try:
        yield stopping
    finally:
        remove()


async def _count(opened: AbstractAsyncContextManager["Pruning"]) -> Sequence["OldRuns"] | None:
    """The old runs. None if interrupted."""

    async def count() -> Sequence["OldRuns"]:
        async with opened as pruning:
            return await pruning.count()

    async with _stop_signals() as stopping:
        counting, stop = asyncio.ensure_future(count()), asyncio.ensure_future(stopping.wait())
        await asyncio.wait((counting, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if counting.done():
            return counting.result()
        counting.cancel()
        await asyncio.wait((counting,))
        return None


def _tell(found: Sequence["OldRuns"], total: int) -> None:
    chosen = ", ".join(f"{each.state.lower()} {each.count:,}" for each in found if each.chosen)
    out.print(f"{total:,} old runs to delete{f': {chosen}' if chosen else ''}.", highlight=False)
    others = [each for each in found if not each.chosen]
    if others:
        stay = ", ".join(f"{each.state.lower()} {each.count:,}" for each in others)
        out.print(f"As old, and kept, as --state does not name them: {stay}.", highlight=False)


async def _delete(
    opened: AbstractAsyncContextManager["Pruning"], total: int, batch: int, pause: float
) -> bool:
    """Whether all are deleted. False if interrupted."""
    from worker.tasks.backoff import pause as wait

    deleted, started = 0, monotonic()
    async with _stop_signals() as stopping, opened as pruning:
        with progress_bar() as progress:
            bar = progress.add_task("deleting", total=total)
            try:
                async for count in pruning.batches(batch):
                    deleted += count
                    # Subflows are added once their parents are deleted.
                    progress.update(bar, completed=deleted, total=max(total, deleted))
                    if pause:
                        await wait(pause, stopping)
                    if stopping.is_set():
                        break
            finally:
                progress.stop()
                out.print(f"{deleted:,} deleted, in {monotonic() - started:,.1f} s.", highlight=False)
        return not stopping.is_set()
