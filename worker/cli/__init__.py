"""The command line, a module a command: reads options, prints for people, maps errors to exit codes
(0, 1 a failure, 2 wrong usage or settings).
"""

import logging
import sys
from typing import NoReturn

import typer
from aiormq.exceptions import AMQPError, ChannelAccessRefused
from pydantic import ValidationError
from rich.markup import escape

from worker.bench import BenchFailed
from worker.broker.connection import BrokerRefused, BrokerUnavailable
from worker.broker.topology import TopologyMismatch
from worker.cli.asyncapi import asyncapi
from worker.cli.bench import bench
from worker.cli.create import create
from worker.cli.db import db_app
from worker.cli.dead_letters import dead_letters_app
from worker.cli.doctor import doctor
from worker.cli.options import err
from worker.cli.run import run
from worker.cli.top import top
from worker.cli.topology import topology_app
from worker.client import ClientError
from worker.contract.errors import Fault
from worker.dead_letters import DeadLettersFailed
from worker.settings import SettingsError
from worker.store import StoreError

app = typer.Typer(
    name="flow-run-worker",
    help="Create Prefect flow runs from a RabbitMQ queue: each request once, each answered as Prefect's "
    "API would.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (run, create, top, doctor, bench, asyncapi):
    app.command()(command)
app.add_typer(topology_app, name="topology")
app.add_typer(db_app, name="db")
app.add_typer(dead_letters_app, name="dead-letters")


FAILURES = (
    AMQPError,
    BenchFailed,
    BrokerRefused,
    BrokerUnavailable,
    ClientError,
    DeadLettersFailed,
    Fault,
    OSError,
    StoreError,
    TopologyMismatch,
)


def main() -> None:
    """The console script: runs the command, and tells what a user can mend in one readable line."""
    # What fails is told by the command itself, in a line; ``run`` sets the worker's own logging up.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    try:
        app()
    except (SettingsError, ValidationError) as error:
        _fail(str(error), code=2)
    except ChannelAccessRefused as error:
        _fail(f"The broker refuses this to the user of the URL, who lacks a right: {error}")
    except FAILURES as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str, code: int = 1) -> NoReturn:
    err.print("[bold red]error[/]:", escape(message), highlight=False, soft_wrap=True)
    sys.exit(code)
