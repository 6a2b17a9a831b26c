"""Measures the cost of events for a worker, and how many a Prefect server accepts: ``python -m
tests.benchmarks.events``.

Requests wait in the queue. A worker starts on the server's database and is timed from the first run
to the last acknowledgement. The API is stopped meanwhile, so the server uses no CPU. Then the
server gets events as fast as it answers, until its table has all of them.
"""

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from uuid import UUID, uuid4

import aio_pika
import httpx
from rich.console import Console
from rich.table import Table

from tests.benchmarks.database import tidy
from tests.conformance.prefect_server import PrefectServer
from tests.support.database import fetch
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess
from worker.broker.topology import Topology
from worker.contract.decode import decode
from worker.contract.encoding import dumps
from worker.contract.message import Message
from worker.contract.related import Related, RelatedRows
from worker.events.event import Beginning, event
from worker.runs.creation import new_run

CHUNK = 200
AWAY = "http://127.0.0.1:9/api"


@dataclass(frozen=True)
class Served:
    """Requests a second, and the worker's CPU seconds for each."""

    rate: float
    cpu: float


def _cpu(worker: WorkerProcess) -> float:
    return worker.metric("process_cpu_seconds_total") or 0.0


async def serve(broker: RabbitMQ, database_url: str, folder: Path, flow: str, count: int, api: str) -> Served:
    """Time ``count`` requests of a worker, from the first run to the last acknowledgement."""
    topology = Topology(f"events-{uuid4().hex[:8]}.create", events=bool(api))
    connection = await aio_pika.connect(broker.url)
    async with connection:
        channel = await connection.channel()
        await topology.declare(channel)
        for start in range(0, count, 1000):
            bodies = (
                json.dumps({"flow_id": flow, "idempotency_key": str(uuid4()), "parameters": {"n": number}})
                for number in range(start, start + 1000)
            )
            await asyncio.gather(
                *(
                    channel.default_exchange.publish(
                        aio_pika.Message(body.encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT),
                        topology.queue,
                    )
                    for body in bodies
                )
            )
        environment = {
            "WORKER_AMQP_URL": broker.url,
            "WORKER_DATABASE_URL": database_url,
            "WORKER_DATABASE_KIND": "prefect",
            "WORKER_QUEUE": topology.queue,
            "WORKER_HTTP_PORT": "0",
            "WORKER_PREFECT_API_URL": api,
        }
        worker = WorkerProcess(folder / f"{topology.queue}.log", environment)
        try:
            first = cpu = 0.0
            while True:
                await asyncio.sleep(0.02)
                if "serving" not in worker.output:
                    continue
                served = worker.metric("flow_run_worker_requests_total", outcome="created") or 0
                if served and not first:
                    first, before, cpu = time.monotonic(), served, _cpu(worker)
                if served >= count:
                    done = count - before
                    return Served(done / (time.monotonic() - first), (_cpu(worker) - cpu) / done)
        finally:
            worker.terminate()


async def take_in(server: PrefectServer, flow: str, count: int) -> tuple[float, float, int]:
    """Events a second that the API answers and that reach its table, and the number lost."""
    rows = RelatedRows(flows={UUID(flow): Related(UUID(flow), "flow")})
    body = json.dumps({"flow_id": flow, "tags": ["a", "b"]}).encode()

    def one() -> bytes:
        run = new_run(decode(Message(body, {}), max_body_bytes=1_000_000), datetime.now(UTC)).run
        beginning = Beginning.of_new(run)
        assert beginning is not None
        return dumps(event(beginning, rows))

    chunks = [b"[%b]" % b",".join(one() for _ in range(CHUNK)) for _ in range(count // CHUNK)]
    events = f"""SELECT count(*) AS n FROM events
        WHERE related_resource_ids @> '["prefect.flow.{flow}"]'"""
    started = time.monotonic()
    async with httpx.AsyncClient(timeout=120) as http:
        for chunk in chunks:
            response = await http.post(
                f"{server.api}/events", content=chunk, headers={"content-type": "application/json"}
            )
            assert response.status_code == 204, response.text
    answered = time.monotonic()
    last, since = 0, time.monotonic()
    while True:
        found = (await fetch(server.database_url, events))[0]["n"]
        if found > last:
            last, since = found, time.monotonic()
        if last == count or time.monotonic() - since > 30:
            return count / (answered - started), last / (since - started), count - last
        await asyncio.sleep(0.5)


async def measure(count: int, rounds: int, taken_in: int) -> None:
    """Print the tables."""
    console = Console()
    with (
        RabbitMQ() as broker,
        PostgreSQL() as cluster,
        PrefectServer(cluster.create_database()) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        flow = httpx.post(f"{server.api}/flows/", json={"name": "flow"}, timeout=60).json()["id"]
        server.stop()
        found: dict[str, list[Served]] = {"": [], AWAY: []}
        for number in range(rounds):
            for api in ("", AWAY) if number % 2 else (AWAY, ""):
                await tidy(server.database_url)
                found[api].append(await serve(broker, server.database_url, Path(folder), flow, count, api))
        table = Table("worker", "requests a second", "each", "CPU a request, µs")
        for api, served in found.items():
            name = "with events" if api else "without events"
            rates = [each.rate for each in served]
            each = ", ".join(f"{rate:,.0f}" for rate in rates)
            cpu = median(each.cpu for each in served) * 1e6
            table.add_row(name, f"{median(rates):,.0f}", each, f"{cpu:.0f}")
        console.print(table)
        server.start()
        flow = httpx.post(f"{server.api}/flows/", json={"name": "other"}, timeout=60).json()["id"]
        answered, stored, lost = await take_in(server, flow, taken_in)
        console.print(
            f"the server: answers {answered:,.0f} events a second, stores {stored:,.0f} "
            f"({lost} of {taken_in} never)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=6_000)
    options = parser.parse_args()
    asyncio.run(measure(options.requests, options.rounds, options.events))


if __name__ == "__main__":
    main()
