"""Measures how late Prefect's automations fire for runs made in different ways: ``python -m
tests.benchmarks.automations``.

A real Prefect server on PostgreSQL has an automation on a run's first state, Pending, and one on
Completed. Runs are made by the API, by a message with events and, with ``--without-events``, by a
message without events, which takes a quarter of an hour. Each run is completed at once.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import httpx
from rich.console import Console
from rich.table import Table

from tests.conformance.prefect_server import PrefectServer
from tests.support.postgresql import PostgreSQL
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess

STATES = ("Pending", "Completed")
# An automation may fire late: Prefect waits fifteen minutes for a missing event.
PATIENCE = 1000.0

Make = Callable[[str], Awaitable[Any]]


class Automations:
    """A Prefect server's automations."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def post(self, path: str, body: Any) -> Any:
        response = await self._http.post(path, json=body)
        assert response.is_success, response.text
        return response.json()

    async def seconds(self, make: Make, patience: float) -> dict[str, float | None]:
        """Make a run and complete it; returns the seconds from each state until its automation
        fired, or None if it did not fire in time.
        """
        flow = (await self.post("/flows/", {"name": str(uuid4())}))["id"]
        automations = {state: await self._automation(flow, state) for state in STATES}
        await asyncio.sleep(2)  # the server loads them with a delay
        run = await make(flow)
        at = {"Pending": datetime.fromisoformat(run["state"]["timestamp"])}
        for state in ("RUNNING", "COMPLETED"):
            changed = await self.post(f"/flow_runs/{run['id']}/set_state", {"state": {"type": state}})
            at["Completed"] = datetime.fromisoformat(changed["state"]["timestamp"])
        fired = dict.fromkeys(STATES, None) | await self._fired(automations, patience)
        return {state: when and (when - at[state]).total_seconds() for state, when in fired.items()}

    async def _automation(self, flow: str, state: str) -> str:
        trigger = {
            "type": "event",
            "posture": "Reactive",
            "expect": [f"prefect.flow-run.{state}"],
            "match_related": {"prefect.resource.id": f"prefect.flow.{flow}", "prefect.resource.role": "flow"},
        }
        automation = {"name": str(uuid4()), "trigger": trigger, "actions": [{"type": "do-nothing"}]}
        return str((await self.post("/automations/", automation))["id"])

    async def _fired(self, automations: dict[str, str], patience: float) -> dict[str, datetime]:
        names = {f"prefect.automation.{number}": state for state, number in automations.items()}
        query = {
            "filter": {"resource": {"id": list(names)}, "event": {"name": ["prefect.automation.triggered"]}}
        }
        deadline = time.monotonic() + patience
        fired: dict[str, datetime] = {}
        while len(fired) < len(names) and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            for event in (await self.post("/events/filter", query))["events"]:
                state = names[event["resource"]["prefect.resource.id"]]
                fired[state] = datetime.fromisoformat(event["occurred"])
        return fired


async def measure(runs: int, *, without_events: bool) -> None:
    """Print the table."""
    with (
        RabbitMQ() as broker,
        PostgreSQL() as cluster,
        PrefectServer(cluster.create_database()) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        async with httpx.AsyncClient(base_url=server.api, timeout=60) as http:
            automations = Automations(http)

            async def by_api(flow: str) -> Any:
                return await automations.post("/flow_runs/", {"flow_id": flow})

            table = Table("the run was made by", *(f"{state}, seconds" for state in STATES))
            ways: list[tuple[str, Make | None, int]] = [("Prefect's API", by_api, runs)]
            ways.append(("a message, with events", None, runs))
            if without_events:
                ways.append(("a message, without events", None, 1))
            for name, make, count in ways:
                if make is not None:
                    found = [await automations.seconds(make, PATIENCE) for _ in range(count)]
                else:
                    api = None if "without" in name else server.api
                    found = await _by_message(automations, broker, server, Path(folder), api, count)
                table.add_row(name, *(_summary([each[state] for each in found]) for state in STATES))
    Console().print(table)


async def _by_message(
    automations: Automations,
    broker: RabbitMQ,
    server: PrefectServer,
    folder: Path,
    api: str | None,
    count: int,
) -> list[dict[str, float | None]]:
    queue = f"automations-{uuid4().hex[:8]}.create"
    environment = {
        "WORKER_AMQP_URL": broker.url,
        "WORKER_DATABASE_URL": server.database_url,
        "WORKER_DATABASE_KIND": "prefect",
        "WORKER_QUEUE": queue,
        "WORKER_HTTP_PORT": "0",
        "WORKER_PREFECT_API_URL": api or "",
    }
    worker = WorkerProcess(folder / f"{queue}.log", environment)
    try:
        await asyncio.to_thread(worker.wait_until_logged, "serving")
        async with Producer(broker.url, queue) as producer:

            async def make(flow: str) -> Any:
                return (await producer.request({"flow_id": flow})).body

            return [await automations.seconds(make, PATIENCE) for _ in range(count)]
    finally:
        worker.kill()


def _summary(seconds: list[float | None]) -> str:
    fired = [each for each in seconds if each is not None]
    if len(fired) < len(seconds):
        return f"never ({len(seconds) - len(fired)} of {len(seconds)})"
    return f"{median(fired):.2f} (most {max(fired):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--without-events", action="store_true")
    options = parser.parse_args()
    asyncio.run(measure(options.runs, without_events=options.without_events))


if __name__ == "__main__":
    main()
