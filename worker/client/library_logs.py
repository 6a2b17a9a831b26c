"""Keeps aiormq's log lines about the client's own connections off the standard error of a program
that has set up no logging.

aiormq logs each failed attempt and each lost connection, the latter with a traceback. The client
goes on by itself then, or raises an error that says the same. Where any handler is configured, all
is logged as ever; so are the connections that the program opens by itself, in either case.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOGGERS = ("aiormq.connection", "aiormq.channel")
_of_the_client = ContextVar("flow_run_client", default=False)


@contextmanager
def of_the_client() -> Iterator[None]:
    """What is logged within, and by the tasks that are started within, is about the client's
    connection.
    """
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_wanted)  # once, however often it is added
    token = _of_the_client.set(True)
    try:
        yield
    finally:
        _of_the_client.reset(token)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not _of_the_client.get() or logging.getLogger(record.name).hasHandlers()
