"""During a memory alarm the broker accepts no publications: a worker logs it, and waits."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import StartWorker
from tests.faults.faults import WATERMARK
from tests.support.processes import ServerFailed, wait_until
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess

REQUESTS = 200
FLOW_ID = str(uuid4())


@pytest.fixture
def amqp_url(broker: RabbitMQ) -> str:
    return broker.url


@pytest.fixture
async def worker(start_worker: StartWorker, sqlite_url: str) -> WorkerProcess:
    return await asyncio.to_thread(start_worker, sqlite_url)


@asynccontextmanager
async def alarm(broker: RabbitMQ) -> AsyncIterator[None]:
    await asyncio.to_thread(broker.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        yield
    finally:
        await asyncio.to_thread(broker.ctl, "set_vm_memory_high_watermark", "absolute", WATERMARK)


async def held(producer: Producer, database_url: str) -> tuple[list[str], sqlite3.Connection]:
    """Requests that a worker holds and can't store yet; roll back to store them."""
    file = sqlite3.connect(database_url.partition(":///")[2], isolation_level=None)
    file.execute("BEGIN IMMEDIATE")
    ids = [await producer.publish({"flow_id": FLOW_ID}) for _ in range(REQUESTS)]
    async with asyncio.timeout(180):
        while await producer.depth():
            await asyncio.sleep(0.05)
    return ids, file


def ready(worker: WorkerProcess) -> tuple[int, Any]:
    status, state = worker.readiness()
    return status, state["broker"]


async def test_it_is_seen_and_waited_out(
    worker: WorkerProcess, broker: RabbitMQ, queue: str, sqlite_url: str
) -> None:
    async with Producer(broker.url, queue) as producer:
        ids, file = await held(producer, sqlite_url)
        async with alarm(broker):
            file.execute("ROLLBACK")
            file.close()
            await asyncio.to_thread(worker.wait_until_logged, "broker_blocked")
            assert await asyncio.to_thread(ready, worker) == (503, "takes no publications: low on memory")
            assert worker.metric("flow_run_worker_broker_blocked") == 1
            assert worker.process.poll() is None
            await asyncio.sleep(4)  # longer than the wait for a reply's confirm
            assert not producer.replies
        await asyncio.to_thread(worker.wait_until_logged, "broker_unblocked")
        replies = await producer.replies_to(ids)
        assert {reply.status for reply in replies} == {201}
        assert {len(producer.replies[each]) for each in ids} == {1}
        await asyncio.to_thread(wait_until, lambda: ready(worker) == (200, "ok"), "readiness")
        assert worker.metric("flow_run_worker_broker_blocked") == 0
        assert worker.metric("flow_run_worker_redelivered_total") == 0
        assert "session_lost" not in worker.output
        assert worker.terminate() == 0
        assert await producer.depth() == 0


async def test_a_worker_that_loses_its_session_meanwhile_comes_back_with_it(
    worker: WorkerProcess, broker: RabbitMQ, queue: str, sqlite_url: str
) -> None:
    """It publishes before it consumes again, and the alarm delays that."""
    async with Producer(broker.url, queue) as producer:
        ids, file = await held(producer, sqlite_url)
        names = "".join(broker.ctl("list_connections", "--no-table-headers", "pid", "client_properties"))
        pids = [
            line.split("\t")[0]
            for line in names.splitlines()
            if "flow-run-worker" in line and "topology" not in line
        ]
        assert len(pids) == 2
        async with alarm(broker):
            file.execute("ROLLBACK")
            file.close()
            await asyncio.to_thread(worker.wait_until_logged, "broker_blocked")
            for pid in pids:
                with suppress(ServerFailed):  # the worker may have closed the second one itself
                    await asyncio.to_thread(broker.ctl, "close_connection", pid, "by the test")
            await asyncio.to_thread(worker.wait_until_logged, "session_lost")
            await asyncio.sleep(2)
            status, _ = await asyncio.to_thread(ready, worker)
            assert status == 503
        replies = await producer.replies_to(ids)
        assert {reply.status for reply in replies} <= {200, 201}
        await asyncio.to_thread(wait_until, lambda: ready(worker) == (200, "ok"), "readiness")
        assert worker.metric("flow_run_worker_redelivered_total") <= REQUESTS  # type: ignore[operator]
        assert worker.terminate() == 0
