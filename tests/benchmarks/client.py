"""A worker on a queue of its own, and the Python client that uses it."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from worker.bench import Fleet
from worker.broker.session import Session
from worker.broker.topology import Topology
from worker.client import FlowRunClient


@asynccontextmanager
async def client_of_a_worker(amqp_url: str, database_url: str) -> AsyncIterator[FlowRunClient]:
    """The client, while the worker runs."""
    topology = Topology(f"flow-runs-bench-{uuid4().hex[:8]}.create")
    await (await Session.open(amqp_url, topology, name="benchmark")).close()
    with tempfile.TemporaryDirectory() as folder:
        async with (
            Fleet(amqp_url, database_url, topology.queue, Path(folder)).running(),
            FlowRunClient(amqp_url, queue=topology.queue) as client,
        ):
            yield client
