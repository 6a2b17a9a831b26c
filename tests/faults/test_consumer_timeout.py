"""The broker's consumer timeout is shorter than a worker holds its deliveries, and the database
refuses writes. Each lost session would cost each delivery one of its limited tries.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from tests.conftest import StartWorker
from tests.faults.faults import TERMINATE
from tests.support.database import alter_system, execute, fetch_runs, locked
from tests.support.postgresql import PostgreSQL
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess

FLOW_ID = str(uuid4())
REQUESTS = 50
# The broker's timeout and its interval of checks, in milliseconds.
TIMEOUT = 1000
# Seconds for which the database refuses writes: several of those timeouts.
AWAY = 6.0


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
    with RabbitMQ() as node:
        # Read when a channel opens.
        for name in ("consumer_timeout", "channel_tick_interval"):
            node.ctl("eval", f"application:set_env(rabbit, {name}, {TIMEOUT}).")
        yield node


@asynccontextmanager
async def read_only(url: str) -> AsyncIterator[None]:
    name = url.rpartition("/")[2]
    await execute(url, f"ALTER DATABASE {name} SET default_transaction_read_only = on", TERMINATE)
    try:
        yield
    finally:
        await execute(url, f"ALTER DATABASE {name} RESET default_transaction_read_only", TERMINATE)


@asynccontextmanager
async def without_rights(url: str) -> AsyncIterator[None]:
    """The owner revokes its own rights."""
    await execute(url, "REVOKE INSERT ON flow_run, flow_run_state FROM worker")
    try:
        yield
    finally:
        await execute(url, "GRANT INSERT ON flow_run, flow_run_state TO worker")


@asynccontextmanager
async def no_standby(url: str) -> AsyncIterator[None]:
    await alter_system(url, "SET synchronous_standby_names = 'away'")
    try:
        yield
    finally:
        await alter_system(url, "RESET synchronous_standby_names")


WAYS = {"read-only": read_only, "locked": locked, "without rights": without_rights, "no standby": no_standby}


@pytest.fixture
async def url(cluster: PostgreSQL) -> AsyncIterator[str]:
    url = cluster.create_database()
    await execute(url, "CREATE ROLE worker LOGIN", "GRANT ALL ON SCHEMA public TO worker")
    yield url
    await execute(url, "DROP OWNED BY worker", "DROP ROLE worker")


@pytest.fixture
async def worker(url: str, start_worker: StartWorker) -> WorkerProcess:
    return await asyncio.to_thread(start_worker, url.replace("postgres@", "worker@"))


@pytest.mark.parametrize("way", WAYS)
async def test_each_request_is_delivered_at_most_twice(
    worker: WorkerProcess, rabbitmq: RabbitMQ, queue: str, url: str, way: str
) -> None:
    async with Producer(rabbitmq.url, queue) as producer:
        assert (await producer.request({"flow_id": FLOW_ID})).status == 201
        async with WAYS[way](url):
            keys = [uuid4().hex for _ in range(REQUESTS)]
            ids = [await producer.publish({"flow_id": FLOW_ID, "idempotency_key": key}) for key in keys]
            await asyncio.to_thread(worker.wait_until_logged, "session_lost")
            await asyncio.sleep(AWAY)
            assert not any(producer.replies[each] for each in ids)
            status, state = await asyncio.to_thread(worker.readiness)
            assert status == 503, state
            assert worker.output.count("session_lost") == 1
            if way in ("read-only", "without rights"):  # in the others, the first try still waits
                assert "database_away" in worker.output.partition("session_lost")[2]
            # Nothing is taken while nothing can be stored.
            assert await producer.depth() == REQUESTS
        healed = time.monotonic()
        replies = await producer.replies_to(ids)
        print(f"\n{way}: all answered {time.monotonic() - healed:.1f} s after the database took writes")
        # Without a standby, the first try may have stored them: they are found.
        assert {reply.status for reply in replies} <= ({200, 201} if way == "no standby" else {201})
        again = await asyncio.to_thread(worker.metric, "flow_run_worker_redelivered_total")
        assert again is not None
        assert again <= REQUESTS  # each once
        assert await asyncio.to_thread(worker.terminate) == 0
        assert await producer.depth() == 0
        assert await producer.depth(f"{queue}.dead") == 0
        assert {len(producer.replies[each]) for each in ids} == {1}
    runs = await fetch_runs(url)
    assert sorted(run["idempotency_key"] for run in runs if run["idempotency_key"]) == sorted(keys)
