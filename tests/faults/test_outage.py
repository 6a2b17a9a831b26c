"""A long outage of the database: the worker holds its deliveries, the rest waits at the broker, and
all are served afterwards.

``WORKER_TEST_OUTAGE_SECONDS=120 python -m pytest -s tests/faults/test_outage.py`` prints the
figures of a longer one.
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from uuid import uuid4

import httpx

from tests.conftest import StartWorker
from tests.faults.faults import TERMINATE
from tests.support.database import execute
from tests.support.postgresql import PostgreSQL
from tests.support.producer import Producer
from tests.support.proxy import Proxy
from tests.support.supervisor import resident
from tests.support.worker_process import WorkerProcess

SECONDS = float(os.environ.get("WORKER_TEST_OUTAGE_SECONDS", "6"))
PREFETCH = 500
# Enough for the whole outage, and always so many that most of them can't be taken.
REQUESTS = max(2_000, int(SECONDS * 250))


async def test_an_outage_of_the_database_is_waited_out(
    start_worker: StartWorker, producer: Producer, cluster: PostgreSQL
) -> None:
    worker = start_worker(cluster.create_database(), prefetch=PREFETCH)
    flow_id = str(uuid4())
    for number in range(1_000):  # warm up
        await producer.publish({"flow_id": flow_id, "idempotency_key": f"warm-{number}"})
    await _replies(producer, 1_000)
    before = resident(worker.process.pid)

    cluster.stop()
    largest, started = before, time.monotonic()
    for number in range(REQUESTS):
        await producer.publish({"flow_id": flow_id, "idempotency_key": f"key-{number}"})
        largest = max(largest, resident(worker.process.pid))
    while time.monotonic() - started < SECONDS:
        await asyncio.sleep(0.2)
        largest = max(largest, resident(worker.process.pid))
    assert httpx.get(f"{worker.http}/readyz").status_code == 503
    assert httpx.get(f"{worker.http}/livez").status_code == 200
    # The prefetch bounds the deliveries of a worker; the broker keeps the rest.
    assert await producer.depth() == REQUESTS - PREFETCH
    assert await producer.depth(f"{producer.queue}.dead") == 0
    away = time.monotonic() - started

    cluster.start()
    healed = time.monotonic()
    await _replies(producer, 1_001)
    first = time.monotonic()
    await _replies(producer, 1_000 + REQUESTS)
    last = time.monotonic()
    after = resident(worker.process.pid)
    assert {reply.status for replies in producer.replies.values() for reply in replies} == {201}
    assert await producer.depth(f"{producer.queue}.dead") == 0
    assert httpx.get(f"{worker.http}/readyz").status_code == 200
    assert largest - before < 64 * 2**20
    assert worker.terminate() == 0
    assert len(producer.replies) == 1_000 + REQUESTS
    print(
        f"\ndatabase away for {away:.0f} s, {REQUESTS} requests published meanwhile, dead-lettered 0; "
        f"resident memory before {before / 2**20:.0f}, at the most {largest / 2**20:.0f}, "
        f"after {after / 2**20:.0f} MiB; first reply {first - healed:.1f} s after the database was back, "
        f"the backlog at {REQUESTS / (last - first):,.0f}/s"
    )


async def _replies(producer: Producer, count: int) -> None:
    async with asyncio.timeout(120):
        while sum(map(len, producer.replies.values())) < count:
            await asyncio.sleep(0.02)


async def test_a_database_that_answers_and_takes_nothing(
    producer: Producer, cluster: PostgreSQL, amqp_url: str, queue: str, tmp_path: Path
) -> None:
    """A standby or a full disk: requests that were handed back are not taken before the database
    accepts writes, so they use up no delivery.
    """
    url = cluster.create_database()
    environment = {
        "WORKER_AMQP_URL": amqp_url,
        "WORKER_DATABASE_URL": url,
        "WORKER_QUEUE": queue,
        "WORKER_MIGRATE": "true",
        "WORKER_HTTP_PORT": "0",
    }
    worker = WorkerProcess(
        tmp_path / "worker.log", environment, [sys.executable, "-m", "tests.faults.hasty_worker"]
    )
    try:
        worker.wait_until_logged("serving")
        await _read_only(url, "on")
        waiting = await producer.publish({"flow_id": str(uuid4())})
        await asyncio.to_thread(worker.wait_until_logged, "deliveries_handed_back")
        await asyncio.sleep(4)
        assert worker.output.count("deliveries_handed_back") == 1
        ready = httpx.get(f"{worker.http}/readyz")
        assert ready.status_code == 503
        assert "read-only" in ready.json()["database"]
        await _read_only(url, "off")
        (reply,) = await producer.replies_to([waiting])
        assert reply.status == 201
        assert worker.terminate() == 0
    finally:
        worker.kill()


async def test_leaving_does_not_wait_for_a_silent_database(
    producer: Producer, cluster: PostgreSQL, amqp_url: str, queue: str, tmp_path: Path
) -> None:
    """``WorkerProcess.terminate`` waits a minute, as long as the store's own timeout."""
    async with Proxy([cluster.port]) as network:
        environment = {
            "WORKER_AMQP_URL": amqp_url,
            "WORKER_DATABASE_URL": cluster.create_database().replace(
                f":{cluster.port}/", f":{network.port}/"
            ),
            "WORKER_QUEUE": queue,
            "WORKER_MIGRATE": "true",
            "WORKER_HTTP_PORT": "0",
            "WORKER_SHUTDOWN_TIMEOUT": "1",
        }
        worker = WorkerProcess(tmp_path / "worker.log", environment)
        try:
            await asyncio.to_thread(worker.wait_until_logged, "serving")
            network.silence()
            await producer.publish({"flow_id": str(uuid4())})
            await asyncio.sleep(1)
            assert await asyncio.to_thread(worker.terminate) == 0
            assert "stopped" in worker.output
        finally:
            worker.kill()


async def _read_only(url: str, value: str) -> None:
    name = url.rpartition("/")[2]
    await execute(
        url,
        f"ALTER DATABASE {name} SET default_transaction_read_only = {value}",
        f"{TERMINATE} AND datname = '{name}'",
    )
