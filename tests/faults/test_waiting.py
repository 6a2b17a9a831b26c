"""A thousand waits of one client, and a broker that restarts among them."""

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from tests.conftest import StartWorker
from tests.support.rabbitmq import RabbitMQ
from worker.client import FlowRunClient
from worker.runs.creation import uuid7

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@pytest.fixture
def broker() -> Iterator[RabbitMQ]:
    with RabbitMQ() as node:
        yield node


def end(file: Path, runs: Sequence[tuple[UUID, str]]) -> None:
    """Write the final states of runs, as a Prefect server does."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    with closing(sqlite3.connect(file, timeout=60)) as connection, connection:
        for run_id, state in runs:
            state_id = str(uuid7(datetime.now(UTC)))
            connection.execute(
                "INSERT INTO flow_run_state"
                " (id, created, updated, flow_run_id, type, timestamp, name, state_details)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, '{}')",
                (state_id, now, now, str(run_id), state, now, state.capitalize()),
            )
            connection.execute(
                "UPDATE flow_run SET state_id = ?, state_type = ?, state_name = ? WHERE id = ?",
                (state_id, state, state.capitalize(), str(run_id)),
            )


async def test_each_of_a_thousand_waits_ends_right(
    broker: RabbitMQ, start_worker: StartWorker, sqlite_url: str, queue: str
) -> None:
    """A quarter of the runs end before the broker stops, one while it is away, and the others
    afterwards.
    """
    file = Path(sqlite_url.partition(":///")[2])
    start_worker(sqlite_url, amqp_url=broker.url, states="final")
    async with FlowRunClient(broker.url, queue=queue, timeout=300) as client:
        made = client.create_many({"flow_id": FLOW_ID, "state": "RUNNING"} for _ in range(1000))
        run_ids = [outcome.run.id async for outcome in made]
        ends = [(run_id, FINAL[number % 4]) for number, run_id in enumerate(run_ids)]
        waiting = [asyncio.create_task(client.wait_for_flow_run(each)) for each in run_ids]
        await asyncio.sleep(1)  # most of them have begun
        end(file, ends[:250])
        async with asyncio.timeout(300):
            await asyncio.wait(waiting[:250])
        await asyncio.to_thread(broker.stop)
        end(file, ends[250:500])
        await asyncio.to_thread(broker.start)
        end(file, ends[500:750])
        async with asyncio.timeout(300):
            await asyncio.wait(waiting[:750])
        end(file, ends[750:])
        async with asyncio.timeout(300):
            ended = await asyncio.gather(*waiting)
    assert [(each.id, each.state_type) for each in ended] == ends
