"""``states``: follows the states of runs as workers publish them."""

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from worker.cli.options import AmqpUrl, DatabaseUrl, Queue, escape, out, run_async

if TYPE_CHECKING:
    from worker.contract.record import FlowRunRecord
    from worker.settings import Settings

# The colours of final states.
COLOURS = {"COMPLETED": "green", "FAILED": "red", "CRASHED": "red", "CANCELLED": "yellow"}


def states(
    final: Annotated[bool, typer.Option("--final", metavar="", help="Only ends of runs.")] = False,
    run: Annotated[
        str | None, typer.Option("--run", help="Only this run (a UUID).", show_default=False)
    ] = None,
    deployment: Annotated[
        str | None,
        typer.Option(
            help="Only runs of this deployment: its id, or with a database FLOW NAME/DEPLOYMENT NAME.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print each record as JSON.")] = False,
    amqp_url: AmqpUrl = None,
    queue: Queue = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Follow the states of runs, a line each. Ctrl-C ends it."""
    from worker.client import FlowRunClient
    from worker.client.waits import has_ended
    from worker.settings import load_settings

    settings = load_settings(amqp_url=amqp_url, queue=queue, database_url=database_url)
    run_id = None if run is None else _uuid(run, "--run")

    async def follow() -> None:
        deployment_id = None if deployment is None else await _deployment_id(settings, deployment)
        binding = f"*.*.{deployment_id or '*'}.{run_id or '*'}"
        async with FlowRunClient(settings.amqp_url, queue=settings.queue) as client:
            async for record in client.states(binding):
                if final and not has_ended(record):
                    continue
                if as_json:
                    print(record.model_dump_json(), flush=True)
                else:
                    _print(record)

    run_async(follow())


def _print(record: "FlowRunRecord") -> None:
    state = record.state_type.value if record.state_type else ""
    name = record.state_name or ""
    shown = escape(state if name.upper() == state else f"{state} ({name})")
    colour = COLOURS.get(state, "default")
    time = "" if record.state is None else record.state.timestamp.isoformat(" ", "milliseconds")[:23]
    out.print(
        f"[dim]{time}[/]  [{colour}]{shown:<10}[/]  {escape(record.name)}  [dim]{record.id}[/]",
        highlight=False,
        soft_wrap=True,
    )


def _uuid(text: str, option: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no UUID", param_hint=option) from None


async def _deployment_id(settings: "Settings", deployment: str) -> UUID:
    """A deployment's id. Its name is looked up in the database."""
    if "/" not in deployment:
        return _uuid(deployment, "--deployment")
    from worker.store import Store

    store = await Store.open(settings.database_url, migrate=False, kind="prefect")
    try:
        found = await store.deployment_id(deployment)
    finally:
        await store.close()
    if found is None:
        raise typer.BadParameter(f"there is no deployment '{deployment}'", param_hint="--deployment")
    return found
