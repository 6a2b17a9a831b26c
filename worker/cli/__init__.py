"""The command line, a module a command: reads options, prints for people, maps errors to exit codes
(1 for a failure, 2 for wrong usage or settings).

A command's module imports its dependencies in its functions: importing all of them for ``--help``
would take most of a second.
"""

import logging
import sys
from types import TracebackType
from typing import Annotated, NoReturn

import typer

from worker import __version__
from worker.cli.asyncapi import asyncapi
from worker.cli.bench import bench
from worker.cli.create import create
from worker.cli.db import db_app
from worker.cli.dead_letters import dead_letters_app
from worker.cli.doctor import doctor
from worker.cli.options import err, escape
from worker.cli.run import run
from worker.cli.states import states
from worker.cli.top import top
from worker.cli.topology import topology_app
from worker.cli.ui import ui

app = typer.Typer(
    name="flow-run-worker",
    help="Create Prefect flow runs from a RabbitMQ queue: each request once, each answered as Prefect's "
    "API would.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
# All arguments of 'run', '--help' too, go to the command that has the settings as options.
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)(run)
for command in (create, states, top, ui, doctor, bench, asyncapi):
    app.command()(command)
app.add_typer(topology_app, name="topology")
app.add_typer(db_app, name="db")
app.add_typer(dead_letters_app, name="dead-letters")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"flow-run-worker {__version__}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


# Errors that a user can fix, by the names of their classes. To import all takes half a second.
FAILURES = frozenset(
    {
        "aiormq.exceptions.AMQPError",
        "worker.bench.load.BenchFailed",
        "worker.broker.connection.BrokerRefused",
        "worker.broker.connection.BrokerUnavailable",
        "worker.broker.declaring.TopologyMismatch",
        "worker.client.errors.ClientError",
        "worker.contract.errors.Fault",
        "worker.operate.dead_letters.DeadLettersFailed",
        "worker.operate.letter_holder.ReadingFailed",
        "worker.store.errors.StoreError",
        "builtins.OSError",  # such as a lost connection
    }
)
WRONG_USAGE = frozenset(
    {
        "pydantic_core._pydantic_core.ValidationError",
        "worker.operate.dead_letters.UnknownIds",
        "worker.operate.editing.ChangeRefused",
        "worker.settings.SettingsError",
    }
)
REFUSED = "aiormq.exceptions.ChannelAccessRefused"
CHANNEL_LOST = "worker.broker.connection.ChannelLost"


def main() -> None:
    """Run the command. Errors that a user can fix are printed in one line."""
    # The command itself prints an error in one line. ``run`` sets up the worker's logging.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    sys.excepthook = _tell_unforeseen
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        _tell(error)
        raise


def _tell_unforeseen(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback without the passwords of URLs."""
    from traceback import format_exception

    from worker.contract.printable import printable
    from worker.observability.redaction import without_secrets

    lines = "".join(format_exception(kind, error, trace))
    print(printable(without_secrets(lines), keep="\n"), end="", file=sys.stderr, flush=True)


def _tell(error: Exception) -> None:
    """Print an error that a user can fix, and exit. Return for any other."""
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if kinds & WRONG_USAGE:
        _fail(str(error), code=2)
    if REFUSED in kinds or (CHANNEL_LOST in kinds and getattr(error, "refused", False)):
        _fail(f"The broker refuses this to the user of the URL, who lacks a right: {error}")
    if kinds & FAILURES:
        _fail(str(error))


def _fail(message: str, code: int = 1) -> NoReturn:
    from worker.observability.redaction import without_secrets

    told = escape(without_secrets(message), keep="\n")
    err.print("[bold red]error[/]:", told, highlight=False, soft_wrap=True)
    sys.exit(code)
