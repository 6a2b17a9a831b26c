"""Compares what producers cost: ``python -m tests.benchmarks.producers``.

Each way to publish or to create runs in a process of its own, in turn, on one broker with one
worker on SQLite: the clients, and programs of some 40 lines with nothing but aio-pika. CPU is the
producer's own, of its user and system time, without its start.
"""

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import aio_pika
from rich.console import Console
from rich.table import Table

from worker.client import FlowRunClient
from worker.client.sync import FlowRunClient as BlockingClient

FLOW_ID = str(uuid4())
UNDER_WAY = 500
Program = Callable[[str, str, int], Awaitable[int]]


def body() -> dict[str, Any]:
    return {"flow_id": FLOW_ID, "parameters": {"order": 4711, "customer": "a customer"}}


async def aio_pika_publish(url: str, queue: str, count: int) -> int:
    """Publish with confirms, by aio-pika alone."""
    async with await aio_pika.connect(url) as connection:
        exchange = (await connection.channel()).default_exchange
        room = asyncio.Semaphore(UNDER_WAY)

        async def publish() -> None:
            async with room:
                text = json.dumps(body()).encode()
                message = aio_pika.Message(
                    text, content_type="application/json", delivery_mode=2, message_id=str(uuid4())
                )
                await exchange.publish(message, queue)

        await asyncio.gather(*(publish() for _ in range(count)))
    return count


async def aio_pika_create(url: str, queue: str, count: int) -> int:
    """Publish with confirms and await the replies, by aio-pika alone."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        replies: dict[str, asyncio.Future[Any]] = {}

        def on_reply(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            replies.pop(str(message.correlation_id)).set_result(json.loads(message.body))

        own = await channel.declare_queue(exclusive=True)
        await own.consume(on_reply, no_ack=True)  # type: ignore[arg-type]
        room = asyncio.Semaphore(UNDER_WAY)

        async def create() -> bool:
            async with room:
                id_ = str(uuid4())
                replies[id_] = asyncio.get_running_loop().create_future()
                message = aio_pika.Message(
                    json.dumps(body()).encode(),
                    content_type="application/json",
                    delivery_mode=2,
                    message_id=id_,
                    correlation_id=id_,
                    reply_to=own.name,
                )
                future = replies[id_]
                await channel.default_exchange.publish(message, queue)
                return "id" in await future

        return sum(await asyncio.gather(*(create() for _ in range(count))))


async def gather_publish(url: str, queue: str, count: int) -> int:
    async with FlowRunClient(url, queue=queue) as client:
        return len(await asyncio.gather(*(client.publish(body()) for _ in range(count))))


async def gather_create(url: str, queue: str, count: int) -> int:
    async with FlowRunClient(url, queue=queue) as client:
        created = (client.create_flow_run(FLOW_ID, parameters=body()["parameters"]) for _ in range(count))
        return len(await asyncio.gather(*created))


async def publish_many(url: str, queue: str, count: int) -> int:
    async with FlowRunClient(url, queue=queue) as client:
        outcomes = client.publish_many(body() for _ in range(count))
        return sum([outcome.error is None async for outcome in outcomes])


async def create_many(url: str, queue: str, count: int) -> int:
    async with FlowRunClient(url, queue=queue) as client:
        outcomes = client.create_many((body() for _ in range(count)), concurrency=UNDER_WAY)
        return sum([outcome.status == 201 async for outcome in outcomes])


async def blocking_publish(url: str, queue: str, count: int) -> int:
    with BlockingClient(url, queue=queue) as client:
        return len([client.publish(body()) for _ in range(count)])


async def blocking_publish_many(url: str, queue: str, count: int) -> int:
    with BlockingClient(url, queue=queue) as client:
        return sum(outcome.error is None for outcome in client.publish_many(body() for _ in range(count)))


async def blocking_create_many(url: str, queue: str, count: int) -> int:
    with BlockingClient(url, queue=queue) as client:
        return sum(outcome.status == 201 for outcome in client.create_many(body() for _ in range(count)))


PROGRAMS: dict[str, Program] = {
    program.__name__: program
    for program in (
        aio_pika_publish,
        gather_publish,
        publish_many,
        blocking_publish,
        blocking_publish_many,
        aio_pika_create,
        gather_create,
        create_many,
        blocking_create_many,
    )
}


def measure(program: Program, url: str, queue: str, count: int) -> dict[str, float]:
    """Run a program for a few requests, and then for ``count``."""
    asyncio.run(program(url, queue, 20))
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    done = asyncio.run(program(url, queue, count))
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    assert done == count, f"{done} of {count}"
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"a second": count / seconds, "us": cpu / count * 1e6}


async def compare(count: int, rounds: int, names: list[str]) -> None:
    from tests.support.rabbitmq import RabbitMQ
    from worker.bench import Fleet
    from worker.broker.session import Session
    from worker.broker.topology import Topology

    figures: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with RabbitMQ() as rabbitmq, tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name in names:
                topology = Topology(f"producers-{uuid4().hex[:8]}.create")
                await (await Session.open(rabbitmq.url, topology, name="benchmark")).close()
                database = f"sqlite+aiosqlite:///{folder}/{topology.queue}.db"
                command = [sys.executable, "-m", __spec__.name, "--only", name, "--requests", str(count)]
                # Without one, the worker's replies and its own load are no part of publishing.
                command += ["--url", rabbitmq.url, "--queue", topology.queue]
                if "publish" in name:
                    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
                else:
                    async with Fleet(rabbitmq.url, database, topology.queue, Path(folder)).running():
                        done = await asyncio.to_thread(
                            subprocess.run, command, capture_output=True, text=True
                        )
                assert done.returncode == 0, done.stderr
                figures[name].append(json.loads(done.stdout))
    table = Table("producer", "requests/s", "CPU us a request", "smallest", "largest")
    for name, each in figures.items():
        times = [figure["us"] for figure in each]
        speed = median(figure["a second"] for figure in each)
        table.add_row(name, f"{speed:,.0f}", f"{median(times):.0f}", f"{min(times):.0f}", f"{max(times):.0f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=PROGRAMS)
    parser.add_argument("--url", help="run the program of --only in this process")
    parser.add_argument("--queue")
    options = parser.parse_args()
    if options.url:
        figures = measure(PROGRAMS[options.only], options.url, options.queue, options.requests)
        print(json.dumps(figures))
        return
    names = [options.only] if options.only else list(PROGRAMS)
    asyncio.run(compare(options.requests, options.rounds, names))


if __name__ == "__main__":
    main()
