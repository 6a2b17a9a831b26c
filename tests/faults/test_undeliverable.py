"""An undeliverable message: RabbitMQ 3.10 closes a connection to which it delivers an AMQP 1.0
message with a number as correlation id. ``-s`` prints the latencies of the others.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import StartWorker
from tests.support.amqp10 import AMQP10Producer
from tests.support.database import fetch_runs
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ

FLOW_ID = str(uuid4())
GOOD = 60


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
    with RabbitMQ(plugins=["rabbitmq_amqp1_0"]) as node:
        yield node


async def test_it_goes_to_the_dead_letters_soon_and_takes_nobody_with_it(
    start_worker: StartWorker, producer: Producer, rabbitmq: RabbitMQ, sqlite_url: str, tmp_path: Path
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201
    sender = await asyncio.to_thread(AMQP10Producer, tmp_path, rabbitmq.port)
    number = {"ulong": 5, "text": json.dumps({"flow_id": FLOW_ID})}
    good = [await producer.publish({"flow_id": FLOW_ID}) for _ in range(GOOD)]
    await sender.send(producer.queue, [number])
    started = time.monotonic()
    good += [await producer.publish({"flow_id": FLOW_ID}) for _ in range(GOOD)]
    replies = await producer.replies_to(good)
    print(f"\n{len(good)} good ones beside it answered {time.monotonic() - started:.1f} s later")
    assert {reply.status for reply in replies} <= {200, 201}
    async with asyncio.timeout(120):
        while await producer.depth(f"{producer.queue}.dead") != 1:
            await asyncio.sleep(0.1)
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201
    lost = worker.output.count("session_lost") + worker.output.count("broker_away")
    print(f"{lost} sessions ended over it; pauses: {worker.output.count('tries=')}")
    # The delivery limit is twenty.
    assert 1 <= lost <= 25
    # A neighbour was counted once, with the first session.
    again = await asyncio.to_thread(worker.metric, "flow_run_worker_redelivered_total")
    assert again is not None
    assert again <= len(good)
    assert await asyncio.to_thread(worker.terminate) == 0
    assert await producer.depth() == 0
    assert len(await fetch_runs(sqlite_url)) >= len(good) + 2
