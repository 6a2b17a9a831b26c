"""A reply queue that accepts messages without confirming them, like a quorum queue whose leader
hangs.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from aio_pika.abc import AbstractQueue

from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess

FLOW_ID = str(uuid4())


@pytest.fixture
def worker(
    request: pytest.FixtureRequest, amqp_url: str, sqlite_url: str, queue: str, tmp_path: Path
) -> Iterator[WorkerProcess]:
    """The parameter is how many seconds a reply waits for its confirm if no later one comes."""
    environment = {
        "WORKER_AMQP_URL": amqp_url,
        "WORKER_DATABASE_URL": sqlite_url,
        "WORKER_QUEUE": queue,
        "WORKER_HTTP_PORT": "0",
        "LONE_REPLY_SECONDS": getattr(request, "param", "10"),
    }
    worker = WorkerProcess(
        tmp_path / "worker.log", environment, [sys.executable, "-m", "tests.faults.hasty_worker"]
    )
    worker.wait_until_logged("serving")
    yield worker
    worker.kill()


@pytest.mark.parametrize("worker", ["3600"], indirect=True, ids=[""])
async def test_a_reply_that_is_not_confirmed_is_given_up_once_a_later_one_is(
    producer: Producer, worker: WorkerProcess, hanging: AbstractQueue
) -> None:
    """Before that, the whole broker may be slow. Other replies wait for none of this."""
    await producer.publish({"flow_id": FLOW_ID}, reply_to=hanging.name)
    await asyncio.sleep(3)
    assert "reply_unroutable" not in worker.output
    reply = await producer.request({"flow_id": FLOW_ID}, message_id="neighbour")
    assert reply.status == 201
    await asyncio.to_thread(worker.wait_until_logged, "the broker does not confirm it")
    assert worker.terminate() == 0
    assert await producer.depth() == 0


async def test_a_reply_that_is_not_confirmed_is_given_up_in_the_end(
    producer: Producer, worker: WorkerProcess, hanging: AbstractQueue, rabbitmq: RabbitMQ
) -> None:
    """It arrives nevertheless if its queue recovers while the worker runs."""
    await producer.publish({"flow_id": FLOW_ID}, reply_to=hanging.name)
    await asyncio.to_thread(worker.wait_until_logged, "the broker does not confirm it")
    rabbitmq.ctl("eval", f"sys:resume('%2F_{hanging.name}').")
    await _take(hanging)
    assert worker.terminate() == 0
    assert await producer.depth() == 0


@pytest.fixture
async def hanging(
    rabbitmq: RabbitMQ, producer: Producer, worker: WorkerProcess, queue: str
) -> AsyncIterator[AbstractQueue]:
    """A reply queue that the worker's channel knows, and whose leader has hung since.

    The first publication to an unknown one would block the whole channel (RabbitMQ 3.10).
    """
    replies = await producer.channel.declare_queue(
        f"{queue}.replies", durable=True, arguments={"x-queue-type": "quorum"}
    )
    await producer.publish({"flow_id": FLOW_ID}, reply_to=replies.name)
    await _take(replies)
    rabbitmq.ctl("eval", f"sys:suspend('%2F_{replies.name}').")
    yield replies
    rabbitmq.ctl("eval", f"sys:resume('%2F_{replies.name}').")


async def _take(queue: AbstractQueue) -> None:
    async with asyncio.timeout(180):
        while await queue.get(no_ack=True, fail=False) is None:
            await asyncio.sleep(0.1)
