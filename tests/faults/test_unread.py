"""Operations that wait for the broker's answer while the worker's consuming connection is paused by
its byte limit. ``-s`` prints the duration.
"""

import asyncio
import time
from contextlib import AbstractContextManager, nullcontext
from uuid import uuid4

import pytest

from tests.conftest import StartWorker
from tests.support.processes import wait_until
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess

FLOW_ID = str(uuid4())
BAD, SIZE = 30, 400_000
HELD = {"prefetch_size": 4 * 2**20}


async def refused(producer: Producer) -> list[str]:
    bad = {"flow_id": FLOW_ID, "no such field": "x" * SIZE}
    return await asyncio.gather(*(producer.publish(bad) for _ in range(BAD)))


async def until_unread(worker: WorkerProcess) -> None:
    def unread() -> bool:
        return worker.metric("flow_run_worker_reading_paused") == 1 and "not_taken" in worker.output

    await asyncio.to_thread(wait_until, unread, "that it holds all that it may", 120)


@pytest.mark.parametrize("how", ["full", "deleted", "deleted and full"])
async def test_large_letters_that_find_no_room_are_taken_once_there_is_some(
    start_worker: StartWorker, producer: Producer, rabbitmq: RabbitMQ, sqlite_url: str, how: str
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url, **HELD)
    dead = f"{producer.queue}.dead"
    full: AbstractContextManager[None] = rabbitmq.full(dead, 1) if "full" in how else nullcontext()
    removed = 0  # with their queue, by this test
    with full:
        if "deleted" in how:
            await producer.channel.queue_delete(dead)
        bad = await refused(producer)
        if "full" in how:
            await until_unread(worker)
            if "deleted" in how:  # again, while the worker waits
                removed = (await producer.channel.queue_delete(dead)).message_count or 0
    started = time.monotonic()
    good = [await producer.publish({"flow_id": FLOW_ID}) for _ in range(20)]
    assert {reply.status for reply in await producer.replies_to(good)} == {201}
    print(f"\n{how}: 20 good ones served {time.monotonic() - started:.1f} s after there was room")
    assert {reply.status for reply in await producer.replies_to(bad)} == {422}
    assert removed < 5  # the length limit drops about that many
    await producer.dead_letters(BAD - removed)
    assert await asyncio.to_thread(worker.terminate) == 0
    assert "session_lost" not in worker.output
    assert await producer.depth() == 0


async def test_leaving_meanwhile_waits_for_no_answer_that_is_not_read(
    start_worker: StartWorker, producer: Producer, rabbitmq: RabbitMQ, sqlite_url: str
) -> None:
    """The consumer is cancelled, deliveries are returned, and nothing outlasts the shutdown
    timeout.
    """
    worker = await asyncio.to_thread(start_worker, sqlite_url, shutdown_timeout=2, **HELD)
    with rabbitmq.full(f"{producer.queue}.dead", 1):
        await refused(producer)
        await until_unread(worker)
        started = time.monotonic()
        assert await asyncio.to_thread(worker.terminate) == 0
        print(f"\nleft {time.monotonic() - started:.1f} s after SIGTERM, with a shutdown timeout of 2 s")
        assert await producer.depth() >= BAD - 5
    # An unanswered close takes five seconds, and there are three of them.
    stopping, stopped = (worker.output.index(each) for each in ("stopping", "stopped"))
    assert stopping < stopped
    another = await asyncio.to_thread(start_worker, sqlite_url, **HELD)
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201
    assert await asyncio.to_thread(another.terminate) == 0
