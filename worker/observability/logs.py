"""Configures the log: structlog, one event a line, for people or as JSON. Knows no events."""

import io
import logging
import sys
import threading
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

from worker.contract.printable import printable
from worker.observability.redaction import without_secrets

# Longest line that is written by one call, in bytes: workers that share a pipe or a file must not
# mix their lines. In a file each stays whole. A pipe takes PIPE_BUF (4,096) bytes as a whole, and
# may cut a longer line when it is full.
LONGEST_LINE = 1024 * 1024


def configure_logging(format: Literal["console", "json"], level: str) -> None:
    """Set up structlog. The standard library's loggers, which our libraries use, get the same
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
    # No traceback shows local variables: some hold URLs with passwords.
    if format == "json":
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderer = [
            structlog.processors.ExceptionRenderer(frames),
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=_plain_traceback
        )
        renderer = [_escape_control_characters, console]
    renderer.append(_without_passwords)
    # Not sys.stderr: with PYTHONUNBUFFERED it writes a line in parts.
    stream = open(  # noqa: SIM115  # open as long as the process
        sys.stderr.fileno(), "w", LONGEST_LINE, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries: warnings only. At info they log every frame and every migration step.
    root.setLevel(max(number, logging.WARNING))
    # The service logs the end of a session in one line. aiormq would add a traceback.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    _log_what_python_prints()


def _log_what_python_prints() -> None:
    """Log Python's warnings and uncaught exceptions, without passwords."""
    logging.captureWarnings(True)
    log = structlog.get_logger("python")

    def unraisable(info: Any) -> None:
        error = (info.exc_type, info.exc_value, info.exc_traceback)
        log.error("unraisable", about=info.err_msg, of=repr(info.object), exc_info=error)

    def in_a_thread(info: threading.ExceptHookArgs) -> None:
        thread = info.thread.name if info.thread else None
        error = (info.exc_type, info.exc_value, info.exc_traceback)
        log.error("thread_ended", thread=thread, exc_info=error)

    sys.excepthook = lambda *error: log.critical("crashed", exc_info=error)
    sys.unraisablehook = unraisable
    threading.excepthook = in_a_thread


def _plain_traceback(file: TextIO, error: Any) -> None:
    written = io.StringIO()
    structlog.dev.plain_traceback(written, error)
    file.write(printable(written.getvalue(), keep="\n"))


def _escape_control_characters(_: Any, __: str, event: EventDict) -> EventDict:
    """Escape producers' texts, such as a message id, so that none begins a new line or controls the
    terminal.
    """
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = printable(value)
    return event


def _without_passwords(_: Any, __: str, line: Any) -> Any:
    """Hide passwords in the whole line: an error's text may have a URL too."""
    return without_secrets(line)
