"""How the worker logs: structlog, one event a line, for people or as JSON; knows nothing of what is
logged.
"""

import logging
import re
import sys
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor

# Passwords as they stand in URLs: before the host, and as a parameter.
_PASSWORD = re.compile(r"""(://[^\s/:@"]*:)[^\s"]+(?=@)|([?&]password=)[^\s&"']+""")


def configure_logging(format: Literal["console", "json"], level: str) -> None:
    """Set structlog up, and the standard library's loggers (of the libraries below us) to the same
    output.

    Args:
        format: ``console`` for people, ``json`` for collectors.
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[Processor]
    # No traceback shows local variables: URLs with their passwords are among them.
    if format == "json":
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderer = [
            structlog.processors.ExceptionRenderer(frames),
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        renderer = [_escape_control_characters, console]
    renderer.append(_without_passwords)
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
    # At info, the libraries log every frame and every migration step. Only their warnings are
    # wanted.
    root.setLevel(max(number, logging.WARNING))
    # The service logs in one line why a session ended. aiormq logs the same with a traceback.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)


def _escape_control_characters(_: Any, __: str, event: EventDict) -> EventDict:
    """Escape what a producer sent, such as a message id, so that it neither begins a new line nor
    steers the terminal.
    """
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = value.encode("unicode_escape").decode("ascii")
    return event


def _without_passwords(_: Any, __: str, line: Any) -> Any:
    """Hide passwords in the whole line, since an error's own words may have a URL too."""
    return _PASSWORD.sub(r"\1\2***", line)
