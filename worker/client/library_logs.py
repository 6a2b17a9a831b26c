"""Hides aiormq's log lines about the client's own connections in programs that have not set up
logging.

aiormq logs each failed attempt to connect, and each lost connection with a traceback. The client
then reconnects, or raises an error that says the same. Programs with logging get these lines as
usual. Lines about the program's own connections are always logged.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOGGERS = ("aiormq.connection", "aiormq.channel")
_of_the_client = ContextVar("flow_run_client", default=False)


@contextmanager
def of_the_client() -> Iterator[None]:
    """Mark log lines of this context, and of tasks started in it, as about the client's
    connection.
    """
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_wanted)  # adds it only once
    token = _of_the_client.set(True)
    try:
        yield
    finally:
        _of_the_client.reset(token)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not _of_the_client.get() or logging.getLogger(record.name).hasHandlers()
