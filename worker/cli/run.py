"""``run``: the worker in the foreground."""

import sys
from typing import Annotated

import structlog
import typer

from worker.broker.connection import BrokerRefused
from worker.broker.topology import TopologyMismatch
from worker.cli.options import AmqpUrl, DatabaseUrl, Queue, run_async
from worker.observability.logs import configure_logging
from worker.service import serve
from worker.settings import load_settings, unknown_settings
from worker.store import StoreError


def run(
    amqp_url: AmqpUrl = None,
    database_url: DatabaseUrl = None,
    queue: Queue = None,
    prefetch: Annotated[
        int | None, typer.Option(help="Deliveries held at once. [WORKER_PREFETCH]", show_default=False)
    ] = None,
    batch_max: Annotated[
        int | None,
        typer.Option(help="Requests in one transaction at the most. [WORKER_BATCH_MAX]", show_default=False),
    ] = None,
    migrate: Annotated[
        bool | None,
        typer.Option(
            "--migrate/--no-migrate",
            help="Bring a PostgreSQL schema up to date first (SQLite's always is). [WORKER_MIGRATE]",
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="console or json. [WORKER_LOG_FORMAT]", show_default=False)
    ] = None,
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
    for name, nearest in unknown_settings():
        structlog.get_logger(__name__).warning("unknown_setting", setting=name, nearest=nearest)
    try:
        run_async(serve(settings))
    except (StoreError, BrokerRefused, TopologyMismatch) as error:
        structlog.get_logger(__name__).error("cannot_start", error=str(error))
        sys.exit(1)
