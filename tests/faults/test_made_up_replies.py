"""Forged direct reply-to names of nodes that no cluster has: RabbitMQ closes the connection of a
publisher to such a name.

``WORKER_TEST_MADE_UP=10000 python -m pytest -s tests/faults/test_made_up_replies.py`` prints the
latencies of the others among more of them.
"""

import asyncio
import base64
import os
import struct
import time
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID, uuid4

import aio_pika

from tests.conftest import StartWorker
from tests.support.database import fetch
from tests.support.processes import wait_until
from tests.support.producer import Producer
from worker.client import FlowRunClient

FLOW_ID = str(uuid4())
MADE_UP = int(os.environ.get("WORKER_TEST_MADE_UP", "3000"))
GOOD = 100


def made_up(number: int) -> str:
    """RabbitMQ's format for a process on a node with this number."""
    node = b"rabbit@made-up-%d" % number
    term = (
        b"\x83Xv"
        + struct.pack(">H", len(node))
        + node
        + bytes((0, 0, 2, 0xB0, 0, 0, 0, 0, 6, 0xB0, 0x94, 0x6A))
    )
    return f"amq.rabbitmq.reply-to.{base64.b64encode(term).decode()}.aSiJZEuFGqmRJ4JUR3dDOQ=="


async def test_made_up_names_hold_up_nobody_and_lose_no_session(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, amqp_url: str
) -> None:
    """Half of the good ones use direct reply-to themselves, from a node that exists."""
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    waited: dict[str, list[float]] = {"by queue": [], "by direct reply-to": []}
    tasks: list[asyncio.Task[Any]] = []

    async def by_queue() -> None:
        started = time.monotonic()
        assert (await producer.request({"flow_id": FLOW_ID})).status == 201
        waited["by queue"].append(time.monotonic() - started)

    async def by_direct_reply(client: FlowRunClient) -> None:
        started = time.monotonic()
        record = await client.create_flow_run(flow_id=UUID(FLOW_ID), timeout=120)
        assert str(record.flow_id) == FLOW_ID
        waited["by direct reply-to"].append(time.monotonic() - started)

    async with (
        Producer(amqp_url, producer.queue) as flood,
        FlowRunClient(amqp_url, queue=producer.queue) as client,
    ):
        step = MADE_UP // (GOOD // 2)
        for start in range(0, MADE_UP, step):
            numbers = range(start, min(start + step, MADE_UP))
            await asyncio.gather(
                *(flood.publish({"flow_id": FLOW_ID}, reply_to=made_up(number)) for number in numbers)
            )
            tasks += [asyncio.create_task(by_queue()), asyncio.create_task(by_direct_reply(client))]
        await asyncio.gather(*tasks)
    for how, seconds in waited.items():
        seconds.sort()
        middle, late, most = (seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.99, 1.0))
        print(
            f"\n{len(seconds)} good ones {how} among {MADE_UP} made-up names: median {middle * 1000:.0f} ms, "
            f"p99 {late * 1000:.0f} ms, at most {most * 1000:.0f} ms"
        )
    assert sum(map(len, waited.values())) == len(tasks) >= GOOD
    started = time.monotonic()
    await asyncio.to_thread(
        wait_until,
        lambda: worker.metric("flow_run_worker_replies_unroutable_total") == MADE_UP,
        "the end of the made-up ones",
        500,
    )
    print(f"the last made-up one was given up {time.monotonic() - started:.1f} s later")
    assert await asyncio.to_thread(worker.terminate) == 0
    assert await producer.depth() == 0
    assert "session_lost" not in worker.output
    assert worker.output.count("no requester has this direct reply-to") == MADE_UP
    (counted,) = await fetch(sqlite_url, "SELECT count(*) AS n FROM flow_run")
    assert counted["n"] == MADE_UP + len(tasks)


async def written_by_the_broker(producer: Producer) -> str:
    """A direct reply-to name as RabbitMQ writes it into a request."""
    channel = await producer.connection.channel()
    replies = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
    await replies.consume(lambda _: None, no_ack=True)  # type: ignore[arg-type]  # nothing comes
    seen = await channel.declare_queue(exclusive=True)
    asking = aio_pika.Message(b"", reply_to="amq.rabbitmq.reply-to")
    await channel.default_exchange.publish(asking, routing_key=seen.name)
    async with asyncio.timeout(60):
        message = await seen.get(no_ack=True, timeout=60)
    assert message is not None
    assert message.reply_to is not None
    return message.reply_to


def forged(name: str) -> list[str]:
    """Names of the same node that RabbitMQ would never write, or not for a current channel."""
    encoded, key = name.removeprefix("amq.rabbitmq.reply-to.").split(".")
    term = base64.b64decode(encoded)
    node, (number, serial, creation) = term[5:-12], struct.unpack(">III", term[-12:])
    length = struct.pack(">H", len(node))
    own = b"\x83Xv" + length + node
    terms = [
        # The old forms of a process id and of an atom.
        *(b"\x83g" + kind + length + node + bytes(9) for kind in (b"d", b"v")),
        b"\x83Xd" + length + node + bytes(12),
        b"\x83Xw" + length[1:] + node + bytes(12),
        # Process ids that no Erlang, or only some, can have.
        *(
            own + struct.pack(">III", *process)
            for process in (
                (2**15, 0, creation),
                (2**32 - 1, 0, creation),
                (number, 2**13, creation),
                (number, 2**32 - 1, creation),
                (2**28, 2**20, creation),
                (0, 0, 0),
                (number + 1, serial, creation),
                (number, serial, creation + 1),
                (2**20, serial, creation + 1),
            )
        ),
        # Another encoding of the node's number.
        *(
            b"\x83Xv" + struct.pack(">H", len(other)) + other + term[-12:]
            for other in (b"reply@0" + node[6:], b"reply@+" + node[6:], b"other" + node[5:])
        ),
        b"\x83d\0\1a",
        b"\x83",
    ]
    names = [f"amq.rabbitmq.reply-to.{base64.b64encode(each).decode()}.{key}" for each in terms]
    keys = ("AAAA", "", "a.b", "\u00fc", "A" * 22 + "==")
    return names + [f"amq.rabbitmq.reply-to.{encoded}.{each}" for each in keys]


async def test_made_up_names_of_a_node_that_stands_cost_its_requesters_nothing(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, amqp_url: str
) -> None:
    """They come first, between and last. Half of the good ones send their first request then."""
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    names = forged(await written_by_the_broker(producer))
    good: list[Any] = []
    async with AsyncExitStack() as stack:
        for _ in range(4):
            for name in names:
                await producer.publish({"flow_id": FLOW_ID}, reply_to=name)
            client = await stack.enter_async_context(FlowRunClient(amqp_url, queue=producer.queue))
            good += [
                asyncio.create_task(client.create_flow_run(flow_id=UUID(FLOW_ID), timeout=120))
                for _ in range(50)
            ]
        assert len(await asyncio.gather(*good)) == 200
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201

    def all_settled() -> bool:
        return worker.metric("flow_run_worker_in_flight") == 0

    await asyncio.to_thread(wait_until, all_settled, "the end of the made-up ones", 120)
    assert await asyncio.to_thread(worker.terminate) == 0
    assert await producer.depth() == 0
    assert "session_lost" not in worker.output
