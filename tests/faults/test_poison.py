"""Poison requests: unreadable properties, and a request that kills the worker's process."""

import asyncio
import json
import os
import signal
import struct
import sys
from pathlib import Path

import aiormq
import pamqp.frame
from aiormq.abc import ChannelFrame
from pamqp import commands as spec
from pamqp.body import ContentBody

from tests.conftest import StartWorker
from tests.support.database import fetch_runs
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import ROOT
from worker.broker.session import Session
from worker.broker.topology import Topology

# Delivery limit of a request; the default is twenty, see tests/unit/test_topology.py.
LIMIT = 6
FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


async def publish_raw(url: str, queue: str, flags: int, properties: bytes, body: bytes) -> None:
    """Publish with a content header of our own making, as other clients may send it."""
    connection = await aiormq.connect(url)
    channel = await connection.channel(publisher_confirms=False)
    header = struct.pack(">HHQH", 60, 0, len(body), flags) + properties
    frames = (
        pamqp.frame.marshal(spec.Basic.Publish(routing_key=queue), channel.number)
        + struct.pack(">BHI", 2, channel.number, len(header))
        + header
        + b"\xce"
        + pamqp.frame.marshal(ContentBody(body), channel.number)
    )
    # A commit waits for the queue. Without it, a queue that lags when the channel closes drops
    # messages.
    await channel.tx_select()
    await connection.write_queue.put(ChannelFrame(payload=frames, should_close=False))
    await channel.tx_commit()
    await connection.close()


async def test_a_property_that_cannot_be_read_costs_the_request_if_it_is_of_use(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, amqp_url: str
) -> None:
    worker = start_worker(sqlite_url)
    body = json.dumps({"flow_id": FLOW_ID}).encode()
    before = await producer.publish({"flow_id": FLOW_ID})
    # A correlation id that is not UTF-8, and a timestamp after the year 9999.
    await publish_raw(amqp_url, producer.queue, 1024, b"\x03a\xff\xfe", body)
    await publish_raw(amqp_url, producer.queue, 64, struct.pack(">Q", 2**62), body)
    after = await producer.publish({"flow_id": FLOW_ID})
    assert [reply.status for reply in await producer.replies_to([before, after])] == [201, 201]
    (letter,) = await producer.dead_letters(1)
    assert letter.headers["x-error-status"] == 422
    assert letter.raw == body
    # Property flags and properties, unchanged.
    assert bytes(letter.headers["x-original-properties"]) == b"\x04\x00\x03a\xff\xfe"
    assert "session_lost" not in worker.output
    # Requests don't use the timestamp, so a bad one costs nothing.
    assert len(await fetch_runs(sqlite_url)) == 3


async def test_a_request_that_ends_the_process_ends_in_the_dead_letters_and_the_others_are_served(
    producer: Producer, sqlite_url: str, rabbitmq: RabbitMQ, queue: str, tmp_path: Path
) -> None:
    """The neighbours lose few of their deliveries, since a suspect is served alone."""
    await _declare(rabbitmq.url, queue)
    good = [await producer.publish({"flow_id": FLOW_ID, "name": f"good-{number}"}) for number in range(30)]
    await producer.publish({"flow_id": FLOW_ID, "name": "deadly"})
    good += [
        await producer.publish({"flow_id": FLOW_ID, "name": f"good-{number}"}) for number in range(30, 60)
    ]
    environment = {
        "WORKER_AMQP_URL": rabbitmq.url,
        "WORKER_DATABASE_URL": sqlite_url,
        "WORKER_QUEUE": queue,
        "WORKER_HTTP_PORT": "0",
    }
    deaths = 0
    dead_letters = 0
    # The lower of two limits counts.
    with rabbitmq.policy(queue, delivery_limit=LIMIT):
        async with asyncio.timeout(300):
            while not dead_letters:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.faults.deadly_worker"),
                    env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                    cwd=tmp_path,
                    stderr=asyncio.subprocess.DEVNULL,
                )
                try:
                    while process.returncode is None and not dead_letters:
                        await asyncio.sleep(0.05)
                        dead_letters = await producer.depth(f"{queue}.dead")
                    if dead_letters:
                        replies = await producer.replies_to(good)
                finally:
                    if process.returncode is None:
                        process.terminate()
                    code = await process.wait()
                if code == -signal.SIGKILL:
                    deaths += 1
    assert LIMIT <= deaths <= LIMIT + 1
    assert {reply.status for reply in replies} <= {200, 201}
    (letter,) = await producer.dead_letters(1)
    assert json.loads(letter.raw)["name"] == "deadly"
    assert letter.headers["x-first-death-reason"] == "delivery_limit"
    assert await producer.depth() == 0
    assert await producer.depth(f"{queue}.dead") == 0
    assert len(await fetch_runs(sqlite_url)) == len(good)


async def _declare(url: str, queue: str) -> None:
    session = await Session.open(url, Topology(queue), name="test")
    await session.close()
