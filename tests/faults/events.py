"""Kills workers under load while Prefect's API is stopped. Afterwards each run must have exactly
one event. ``python -m tests.faults.events --minutes 5 --kills 20`` exits with 1 otherwise.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx

from tests.conformance.prefect_server import PrefectServer
from tests.faults.load import Load, Verdict
from tests.support.database import fetch
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from tests.support.supervisor import Supervisor

WORKERS = 2
# Seconds until a backlog is delivered on a busy machine.
CATCH_UP = 1800.0


@dataclass(frozen=True)
class Count:
    """Runs and their events.

    Attributes:
        runs: in the database, of this flow.
        without_event: how many of these have no event.
        doubled: events with one id, and runs with more than one first event.
        catch_up: seconds from the API's start until all events had arrived.
    """

    runs: int
    without_event: int
    doubled: int
    catch_up: float

    @property
    def sound(self) -> bool:
        return (self.without_event, self.doubled) == (0, 0)


async def kill_workers_without_api(
    server: PrefectServer,
    broker: RabbitMQ,
    folder: Path,
    *,
    kills: int,
    seconds: float,
    seed: int,
    pause: float,
) -> tuple[Verdict, Count]:
    """Stop the API, serve a load for this long, and kill a worker now and then. Then start the API
    and wait for the events.

    Args:
        server: started.
        pause: seconds between two requests of each of the two producers.
    """
    queue = f"events-{uuid4().hex[:8]}.create"
    moments = random.Random(seed)
    async with AsyncExitStack() as stack:
        load = await stack.enter_async_context(Load(broker.url, queue, seed=seed))
        flow = {"name": f"flow-{uuid4()}"}
        load.flow_id = httpx.post(f"{server.api}/flows/", json=flow, timeout=60).json()["id"]
        environment = {
            "WORKER_AMQP_URL": broker.url,
            "WORKER_DATABASE_URL": server.database_url,
            "WORKER_QUEUE": queue,
            "WORKER_HTTP_PORT": "0",
            "WORKER_PREFECT_API_URL": server.api,
        }
        workers = Supervisor(folder, environment)
        stack.callback(workers.kill_all)
        await workers.start(WORKERS)
        await asyncio.to_thread(server.stop)
        load.start(pause=pause)
        for _ in range(kills):
            await asyncio.sleep(moments.uniform(0.5, 1.5) * seconds / kills)
            # Workers that are still starting would be killed before they did anything.
            await workers.kill_serving(moments.randrange(WORKERS))
        await load.stop()
        await load.settled()
        assert workers.logged("events_held"), "the API was not missed"
        started = time.monotonic()
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(CATCH_UP):
            while (count := await _count(server.database_url, load.flow_id, started)).without_event:
                await asyncio.sleep(1)
        assert set(await workers.stop()) == {0}
        assert workers.died == []
        return await load.verdict(server.database_url), count


async def _count(database_url: str, flow_id: str, started: float) -> Count:
    (runs,) = await fetch(
        database_url,
        f"""
        SELECT count(*) AS runs,
               count(*) FILTER (WHERE NOT EXISTS (
                   SELECT 1 FROM events WHERE events.id = flow_run.state_id
               )) AS without_event
        FROM flow_run WHERE flow_id = '{flow_id}'
        """,
    )
    (events,) = await fetch(
        database_url,
        f"""
        SELECT count(*) AS events, count(DISTINCT resource_id) AS of_runs FROM events
        WHERE related_resource_ids @> '["prefect.flow.{flow_id}"]'
          AND resource_id LIKE 'prefect.flow-run.%'
        """,
    )
    doubled = events["events"] - events["of_runs"]
    return Count(runs["runs"], runs["without_event"], doubled, time.monotonic() - started)


async def run(minutes: float, kills: int, seed: int, pause: float) -> int:
    """Run it all; returns the exit code."""
    with (
        RabbitMQ() as broker,
        PostgreSQL() as cluster,
        PrefectServer(cluster.create_database()) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        verdict, count = await kill_workers_without_api(
            server, broker, Path(folder), kills=kills, seconds=minutes * 60, seed=seed, pause=pause
        )
    print(verdict)
    print(count)
    return 0 if verdict.sound and count.sound else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.02)
    options = parser.parse_args()
    return asyncio.run(run(options.minutes, options.kills, options.seed, options.pause))


if __name__ == "__main__":
    sys.exit(main())
