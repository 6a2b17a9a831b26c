"""Finds a broker for the demo and for ``make run``: the configured one, one on localhost, or a
private node.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aio_pika

from tests.support.processes import answers
from tests.support.rabbitmq import RabbitMQ
from worker.broker.connection import BrokerRefused, BrokerUnavailable, connect

LOCAL_URL = "amqp://guest:guest@localhost:5672/"


@contextmanager
def broker() -> Iterator[tuple[str, str]]:
    """A broker's URL, and how it was found; a private node ends with the context.

    If there is none and none can be installed, it prints advice and exits with 1.
    """
    if url := os.environ.get("WORKER_AMQP_URL"):
        yield url, "WORKER_AMQP_URL"
    elif answers(5672, "localhost") and asyncio.run(_lets_us_in(LOCAL_URL)):
        yield LOCAL_URL, "found on localhost"
    else:
        if subprocess.run([Path(__file__).with_name("servers.sh"), "rabbitmq"], check=False).returncode:
            sys.exit(1)
        with RabbitMQ() as node:
            yield node.url, "a private node, which ends with this command"


async def _lets_us_in(url: str) -> bool:
    try:
        connection = await connect(url, name="flow-run-worker demo", connection_class=aio_pika.Connection)
    except (BrokerUnavailable, BrokerRefused):
        return False
    await connection.close()
    return True
