"""``make demo``: shows the main use on a real broker, worker processes and SQLite, in a temporary
folder.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiormq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.support.broker import broker
from tests.support.processes import wait_until
from worker.client import CreateOutcome, FlowRunClient, FlowRunRefused
from worker.contract.topology import QueueNames

REQUESTS = 5_000
# One in twenty repeats another one's key, one in a hundred is malformed.
DUPLICATES, MALFORMED = 20, 100

console = Console(highlight=False, soft_wrap=True)

FLOW_ID = str(uuid4())
EVERY_FIELD: dict[str, Any] = {
    "flow_id": FLOW_ID,
    "name": "order-4711",
    "flow_version": "1.2.3",
    "state": {
        "type": "SCHEDULED",
        "message": "for tonight",
        "state_details": {"scheduled_time": "2030-01-01T00:00:00Z"},
    },
    "parameters": {"order": 4711, "customer": {"name": "Zoë", "vip": True}},
    "context": {"source": "demo"},
    "parent_task_run_id": str(uuid4()),
    "infrastructure_document_id": str(uuid4()),
    "empirical_policy": {"retries": 3, "retry_delay": 10},
    "tags": ["orders", "eu"],
    "labels": {"team": "blue", "tier": 2},
    "idempotency_key": "order-4711",
    "deployment_id": str(uuid4()),
    "work_queue_name": "default",
    "job_variables": {"cpu": 2},
}


class Workers:
    """Worker processes on one database, ended with the context."""

    def __init__(self, url: str, queue: str, folder: Path) -> None:
        self._environment = {
            **os.environ,
            "WORKER_AMQP_URL": url,
            "WORKER_QUEUE": queue,
            "WORKER_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/flow_runs.db",
            "WORKER_HTTP_PORT": "0",
            "WORKER_LOG_FORMAT": "console",
        }
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(60) for process in self._processes]
        console.print(f"\nWorkers ended by SIGTERM, exit codes {codes}.")

    def start(self) -> None:
        log = self._folder / f"worker-{len(self._processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", "run"], env=self._environment, stderr=output
            )
        self._processes.append(process)

        def serving() -> bool:
            if process.poll() is not None:
                sys.exit(f"The worker ended:\n{log.read_text()}")
            return "serving" in log.read_text()

        wait_until(serving, "the worker")


def show(title: str, outcome: CreateOutcome) -> None:
    record = outcome.record
    assert record is not None
    console.print(
        f"[green]{outcome.status}[/] {title}: run [bold]{record.name}[/] {record.id}, "
        f"state {record.state_name}, expected start {record.expected_start_time}"
    )


async def one_by_one(url: str, queue: str, workers: Workers) -> None:
    async with FlowRunClient(url, queue=queue) as client, FlowRunClient(url, queue=queue) as another:
        created = await client.request(EVERY_FIELD)
        show("every field of the endpoint", created)
        existing = await client.request(EVERY_FIELD)
        show("the same key again", existing)
        assert existing.record is not None
        assert created.record is not None
        assert existing.record.id == created.record.id

        workers.start()
        both = {"flow_id": FLOW_ID, "idempotency_key": "at-once"}
        twins = await asyncio.gather(client.request(both), another.request(both))
        ids = {twin.record.id for twin in twins if twin.record}
        statuses = sorted((twin.status for twin in twins), reverse=True)
        console.print(
            f"[green]{statuses}[/] one key at once, two workers running: {len(ids)} run, {ids.pop()}"
        )

        try:
            await client.request({"flow_id": "not-a-uuid", "no_such_field": "red"}, check=False)
        except FlowRunRefused as refused:
            console.print(
                f"[yellow]{refused.status}[/] a request that is refused: {refused.errors[0]['msg']}"
            )
        await show_dead_letter(url, f"{queue}.dead")

        message_id = await client.publish({"flow_id": FLOW_ID, "name": "fire-and-forget"})
        console.print(f"[green]ok[/]  fire-and-forget: taken over by the broker as message {message_id}")


async def show_dead_letter(url: str, queue: str) -> None:
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    letter = await channel.basic_get(queue, no_ack=True)
    headers: dict[str, Any] = dict(letter.header.properties.headers or {})
    console.print(f"      it went to {queue}: {letter.body.decode()}")
    for name in ("x-error-status", "x-error", "x-failed-at"):
        console.print(f"      {name}: {headers.get(name)}", markup=False)
    await connection.close()


async def many(url: str, queue: str) -> Table:
    sent: dict[int, float] = {}
    counts = {"created": 0, "existing": 0, "refused": 0}
    latencies: list[float] = []

    def requests() -> Any:
        for number in range(REQUESTS):
            key = number - 1 if number % DUPLICATES == DUPLICATES - 1 else number
            body: dict[str, Any] = {
                "flow_id": FLOW_ID,
                "idempotency_key": f"run-{key}",
                "parameters": {"number": number},
            }
            if number % MALFORMED == MALFORMED // 2:
                body["no_such_field"] = "red"
            sent[number] = time.perf_counter()
            yield body

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    started = time.perf_counter()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"{REQUESTS:,} requests", total=REQUESTS)
        async with FlowRunClient(url, queue=queue) as client:
            async for outcome in client.create_many(requests(), concurrency=200):
                latencies.append(time.perf_counter() - sent[outcome.index])
                kind = {201: "created", 200: "existing"}.get(outcome.status, "refused")
                if outcome.status == 0:
                    raise SystemExit(f"no answer: {outcome.error}")
                counts[kind] += 1
                progress.advance(bar)
    seconds = time.perf_counter() - started
    latencies.sort()
    table = Table(title=f"{REQUESTS:,} requests, 200 at a time, one client, two workers, SQLite")
    for name in ("created", "existing", "refused", "rate", "latency p50", "latency p99"):
        table.add_column(name, justify="right")
    table.add_row(
        *(f"{count:,}" for count in counts.values()),
        f"{REQUESTS / seconds:,.0f}/s",
        f"{latencies[len(latencies) // 2] * 1000:.0f} ms",
        f"{latencies[len(latencies) * 99 // 100] * 1000:.0f} ms",
    )
    return table


async def forget(url: str, queue: str) -> None:
    """Delete the demo's queues and exchanges."""
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    names = QueueNames(queue, events=True, states=True)
    for name in names.queues:
        await channel.queue_delete(name)
    for exchange in names.exchanges:
        await channel.exchange_delete(exchange)
    await connection.close()


def main() -> None:
    # On SIGTERM, it still ends the processes that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    queue = f"flow-runs-demo-{uuid4().hex[:6]}.create"
    with tempfile.TemporaryDirectory(prefix="flow-run-worker-") as folder, broker() as (url, how):
        console.print(f"Broker: {how}. Database: SQLite in {folder}.\n")
        with Workers(url, queue, Path(folder)) as workers:
            workers.start()
            asyncio.run(one_by_one(url, queue, workers))
            console.print()
            console.print(asyncio.run(many(url, queue)))
        asyncio.run(forget(url, queue))


if __name__ == "__main__":
    main()
