"""How the worker logs: structlog, one event a line, for people or as JSON; knows nothing of what is logged."""

import logging
import sys
from typing import Literal

import structlog


def configure_logging(format: Literal["console", "json"], level: str) -> None:
    """Set structlog up, and the standard library's loggers (of the libraries below us) to the same output.

    Args:
        format: ``console`` for people, ``json`` for collectors.
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor]
    if format == "json":
        renderer = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    else:
        renderer = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # The libraries tell of every frame and migration step at info; their warnings are ours to see.
    root.setLevel(max(number, logging.WARNING))
    # What ends a session is logged by the service in a line of its own; aiormq's own lines on it come with tracebacks.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
