"""A worker that dies at a seam of the line: its effects, and the next worker's answer."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import StartWorker
from tests.faults.crashing_worker import SEAMS
from tests.support.database import fetch_runs
from tests.support.producer import Producer
from tests.support.worker_process import WorkerProcess

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
# At its death: the numbers of runs and replies; then the next worker's answer.
LEFT = {
    "after decode, before commit": (0, 0, [201]),
    "after commit, before reply": (1, 0, [200]),
    "after reply, before acknowledgement": (1, 1, [201, 200]),
    "while decoding": (0, 0, [201]),
}


@pytest.mark.parametrize("seam", SEAMS)
async def test_what_a_crash_leaves_is_finished_by_the_next_worker(
    start_worker: StartWorker,
    producer: Producer,
    amqp_url: str,
    sqlite_url: str,
    tmp_path: Path,
    seam: str,
) -> None:
    runs, replies, statuses = LEFT[seam]
    marker = tmp_path / "crashed"
    environment = {
        "WORKER_AMQP_URL": amqp_url,
        "WORKER_DATABASE_URL": sqlite_url,
        "WORKER_QUEUE": producer.queue,
        "WORKER_HTTP_PORT": "0",
    }
    command = [sys.executable, "-m", "tests.faults.crashing_worker", seam, str(marker)]
    worker = WorkerProcess(tmp_path / "crashing.log", environment, command)
    try:
        await asyncio.to_thread(worker.wait_until_logged, "serving")
        sent = await producer.publish({"flow_id": FLOW_ID}, message_id="m")
        assert await asyncio.to_thread(worker.process.wait, 180) == -signal.SIGKILL
    finally:
        worker.kill()
    assert marker.read_text() == seam
    assert len(await fetch_runs(sqlite_url)) == runs
    async with asyncio.timeout(180):
        while not await producer.depth():
            await asyncio.sleep(0.05)
    assert len(producer.replies[sent]) == replies
    await asyncio.to_thread(start_worker, sqlite_url)
    async with asyncio.timeout(180):
        while len(producer.replies[sent]) < len(statuses):
            await asyncio.sleep(0.05)
    assert [reply.status for reply in producer.replies[sent]] == statuses
    assert len({reply.body["id"] for reply in producer.replies[sent]}) == 1
    assert len(await fetch_runs(sqlite_url)) == 1
    async with asyncio.timeout(180):
        while await producer.depth():
            await asyncio.sleep(0.05)
