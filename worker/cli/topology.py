"""``topology``: shows or declares the queues and the exchange at the broker."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from worker.cli.options import AmqpUrl, Bindings, Queue, err, escape, out, run_async

if TYPE_CHECKING:
    from worker.contract.topology import QueueNames

topology_app = typer.Typer(help="The queues and the exchange at the broker.", no_args_is_help=True)


@topology_app.command("declare")
def topology_declare(amqp_url: AmqpUrl = None, queue: Queue = None, bindings: Bindings = None) -> None:
    """Declare the queues, the exchange and the bindings. Changes nothing that exists."""
    from worker.broker.session import Session
    from worker.broker.topology import Topology
    from worker.observability.redaction import redact
    from worker.settings import load_settings

    settings = load_settings(amqp_url=amqp_url, queue=queue, bindings=bindings)
    topology = Topology.of(settings.queue_names)

    async def declare() -> list[str]:
        session = await Session.open(settings.amqp_url, topology, name="flow-run-worker topology")
        await session.close()
        return session.unbound

    unbound = run_async(declare())
    out.print(f"Declared at {redact(settings.amqp_url)}:", highlight=False)
    _print_topology(topology)
    for fault in unbound:
        err.print(f"Not bound: {fault}", highlight=False, markup=False, soft_wrap=True)
    if unbound:
        raise typer.Exit(1)


@topology_app.command("show")
def topology_show(queue: Queue = None, bindings: Bindings = None) -> None:
    """Show what the worker declares, without asking a broker."""
    from worker.settings import load_settings

    _print_topology(load_settings(queue=queue, bindings=bindings).queue_names)


def _print_topology(names: "QueueNames") -> None:
    from rich.table import Table

    table = Table("what", "name", "properties")
    for name, arguments in names.queues.items():
        table.add_row("queue", name, _properties(arguments))
    for name, kind in names.exchanges.items():
        table.add_row("exchange", name, f"{kind}, durable")
    if names.exchange is not None:
        table.add_row("binding", names.routing_key, f"{names.exchange} -> {names.queue}")
    for binding in names.bindings:
        table.add_row("binding", escape(binding.routing_key), f"{escape(binding.exchange)} -> {names.queue}")
    out.print(table)


def _properties(arguments: Mapping[str, Any]) -> str:
    return "\n".join(("durable", *(f"{name}: {value!r}" for name, value in arguments.items())))
