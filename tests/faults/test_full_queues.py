"""Full queues: the worker retries or gives up refused messages, and delays no other request. ``-s``
prints the latencies of the others. (tests/integration/test_settlement.py also runs without the fast
path.)
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import StartWorker
from tests.support.database import fetch
from tests.support.processes import wait_until
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.supervisor import resident
from tests.support.worker_process import WorkerProcess

FLOW_ID = str(uuid4())
BAD, GOOD = 1_300, 20


class Timed(Producer):
    """Notes when each request was published, and when each reply arrived."""

    def __init__(self, url: str, queue: str) -> None:
        super().__init__(url, queue)
        self.published: dict[str, float] = {}
        self.waited: dict[str, float] = {}

    async def publish(self, body: bytes | dict[str, Any], **properties: Any) -> str:
        correlation_id = properties.pop("correlation_id", None) or uuid4().hex
        self.published[correlation_id] = time.monotonic()
        return await super().publish(body, correlation_id=correlation_id, **properties)

    async def _on_reply(self, message: Any) -> None:
        now = time.monotonic()
        self.waited.setdefault(message.correlation_id, now - self.published[message.correlation_id])
        await super()._on_reply(message)

    def of(self, ids: list[str]) -> str:
        """The latencies of these."""
        seconds = sorted(self.waited[each] for each in ids)
        p99 = seconds[int(len(seconds) * 0.99)]
        return f"median {statistics.median(seconds):.2f} s, p99 {p99:.2f} s, at most {seconds[-1]:.2f} s"


@pytest.fixture
async def timed(amqp_url: str, queue: str) -> AsyncIterator[Timed]:
    async with Timed(amqp_url, queue) as producer:
        yield producer


async def depth(worker: WorkerProcess, producer: Producer, expected: int) -> None:
    async with asyncio.timeout(300):
        while await producer.depth(f"{producer.queue}.dead") != expected:
            assert worker.process.poll() is None
            await asyncio.sleep(0.1)


def calm(worker: WorkerProcess) -> bool:
    return (
        worker.metric("flow_run_worker_dead_letters_held") == 0
        and "dead_letters" not in worker.readiness()[1]
    )


async def until_a_letter_waits(worker: WorkerProcess, timed: Timed) -> list[str]:
    """Send bad requests until the full queue refuses a dead letter; returns their ids. The queue
    takes a few more than its length until it counts them.
    """
    ids: list[str] = []
    while not worker.metric("flow_run_worker_dead_letters_held"):
        ids.append((await timed.request({"flow_id": len(ids)})).correlation_id or "")
    return ids


async def test_a_full_dead_letter_queue_holds_up_no_good_request_and_is_seen(
    start_worker: StartWorker, timed: Timed, rabbitmq: RabbitMQ, sqlite_url: str
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    bad: list[str] = []
    good: list[str] = []
    with rabbitmq.full(f"{timed.queue}.dead", 10):
        for _ in range(2):
            bad += await asyncio.gather(*(timed.publish({"flow_id": n}) for n in range(BAD // 2)))
            good += await asyncio.gather(*(timed.publish({"flow_id": FLOW_ID}) for _ in range(GOOD // 2)))
        replies = await timed.replies_to(good)
        assert {reply.status for reply in replies} == {201}
        print(f"\n{GOOD} good ones behind {BAD} bad ones: {timed.of(good)}")
        await asyncio.to_thread(worker.wait_until_logged, "dead_letters_not_taken")
        # Each bad one is answered by now; only its dead letter waits.
        assert {reply.status for reply in await timed.replies_to(bad)} == {422}
        status, state = await asyncio.to_thread(worker.readiness)
        assert (status, state["ready"]) == (200, True)
        assert "are not taken by their queue" in state["dead_letters"]
        held = await asyncio.to_thread(worker.metric, "flow_run_worker_dead_letters_held")
        assert held is not None
        # The queue takes a few more than its length until it counts them.
        assert BAD / 2 < held <= BAD
        # Later ones are served as well.
        later = [await timed.publish({"flow_id": FLOW_ID}) for _ in range(GOOD)]
        await timed.replies_to(later)
        print(f"{GOOD} more, one after the other: {timed.of(later)}")
    healed = time.monotonic()
    await depth(worker, timed, BAD)
    print(f"all dead letters taken {time.monotonic() - healed:.1f} s after there was room")

    await asyncio.to_thread(wait_until, lambda: calm(worker), "no dead letters that wait")
    assert {len(timed.replies[each]) for each in (*bad, *good, *later)} == {1}
    assert "session_lost" not in worker.output
    assert await asyncio.to_thread(worker.metric, "flow_run_worker_redelivered_total") == 0
    assert await asyncio.to_thread(worker.terminate) == 0
    assert await timed.depth() == 0


async def test_one_dead_letter_that_waited_is_forgotten_once_it_is_taken(
    start_worker: StartWorker, timed: Timed, rabbitmq: RabbitMQ, sqlite_url: str
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    with rabbitmq.full(f"{timed.queue}.dead", 1):
        ids = await until_a_letter_waits(worker, timed)
        await asyncio.to_thread(worker.wait_until_logged, "dead_letters_not_taken")
    await depth(worker, timed, len(ids))

    await asyncio.to_thread(wait_until, lambda: calm(worker), "no dead letters that wait", 60)
    assert worker.terminate() == 0


async def test_leaving_while_dead_letters_wait_gives_their_requests_back(
    start_worker: StartWorker, timed: Timed, rabbitmq: RabbitMQ, sqlite_url: str
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url, shutdown_timeout=1)
    dead = f"{timed.queue}.dead"
    with rabbitmq.full(dead, 1):
        ids = [await timed.publish({"flow_id": number}) for number in range(50)]
        await timed.replies_to(ids)
        await asyncio.to_thread(worker.wait_until_logged, "dead_letters_not_taken")
        assert await asyncio.to_thread(worker.terminate) == 0
        # The queue takes more than its length until it counts them. It refuses at least one.
        async with asyncio.timeout(60):
            while await timed.depth() + await timed.depth(dead) < len(ids):
                await asyncio.sleep(0.1)
        assert await timed.depth() > 0
    another = await asyncio.to_thread(start_worker, sqlite_url)
    async with asyncio.timeout(180):
        while await timed.depth() > 0 or await timed.depth(dead) < len(ids):
            await asyncio.sleep(0.1)
    assert another.terminate() == 0
    # Requests that waited at the end were already answered.
    assert {reply.status for each in timed.replies.values() for reply in each} == {422}
    assert await timed.depth() == 0
    letters = await timed.dead_letters(await timed.depth(dead))
    assert {letter.correlation_id for letter in letters} == set(ids)


async def test_a_reply_queue_that_is_full_for_a_moment_gets_all(
    start_worker: StartWorker, timed: Timed, sqlite_url: str
) -> None:
    """This holds even though each session begins with one delivery at a time."""
    worker = await asyncio.to_thread(start_worker, sqlite_url, prefetch=1)
    refusing = await timed.channel.declare_queue(
        f"{timed.queue}.full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    try:
        ids = {await timed.publish({"flow_id": FLOW_ID}, reply_to=refusing.name) for _ in range(5)}

        # The first one's reply is in the queue.
        def all_wait() -> bool:
            return worker.metric("flow_run_worker_in_flight") == len(ids) - 1

        await asyncio.to_thread(wait_until, all_wait, "all wait", 60)
        came: set[str | None] = set()
        async with asyncio.timeout(60), refusing.iterator(no_ack=True) as replies:
            async for reply in replies:
                came.add(reply.correlation_id)
                if came == ids:
                    break
    finally:
        await refusing.delete(if_unused=False, if_empty=False)
    assert "reply_unroutable" not in worker.output
    assert await asyncio.to_thread(worker.terminate) == 0


async def test_a_full_reply_queue_holds_up_nobody_else(
    start_worker: StartWorker, timed: Timed, sqlite_url: str
) -> None:
    """It refuses 2,000 replies among 2,000 good requests."""
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    refusing = await timed.channel.declare_queue(
        f"{timed.queue}.full", arguments={"x-max-length": 0, "x-overflow": "reject-publish"}
    )
    good: list[str] = []
    try:
        for _ in range(40):
            published = await asyncio.gather(
                *(
                    timed.publish({"flow_id": FLOW_ID}, **({"reply_to": refusing.name} if bad else {}))
                    for _ in range(50)
                    for bad in (True, False)
                )
            )
            good += published[1::2]
        replies = await timed.replies_to(good)
        assert {reply.status for reply in replies} == {201}
        print(f"\n{len(good):,} good ones among 2,000 whose reply queue is full: {timed.of(good)}")
        # The others are given up and acknowledged.
        started = time.monotonic()

        def given_up() -> bool:
            return worker.metric("flow_run_worker_replies_unroutable_total") == 2_000

        await asyncio.to_thread(wait_until, given_up, "all given up", 300)
        memory = resident(worker.process.pid) / 2**20
        print(f"the last of them given up {time.monotonic() - started:.1f} s later; worker {memory:.0f} MiB")
    finally:
        await refusing.delete(if_unused=False, if_empty=False)
    assert worker.output.count("the broker does not take it") == 2_000
    assert "session_lost" not in worker.output
    (counted,) = await fetch(sqlite_url, "SELECT count(*) AS n FROM flow_run")
    assert counted["n"] == 4_000
    assert await asyncio.to_thread(worker.terminate) == 0
    assert await timed.depth() == 0
    assert await timed.depth(f"{timed.queue}.dead") == 0


async def test_a_letter_is_kept_while_no_channel_can_be_opened_for_it(
    start_worker: StartWorker, timed: Timed, rabbitmq: RabbitMQ, sqlite_url: str
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    with rabbitmq.full(f"{timed.queue}.dead", 1):
        ids = await until_a_letter_waits(worker, timed)
        rabbitmq.ctl("set_user_limits", "guest", '{"max-channels": 1}')
        try:
            await asyncio.to_thread(worker.wait_until_logged, "not_declared_again")
        finally:
            rabbitmq.ctl("clear_user_limits", "guest", "max-channels")
    await depth(worker, timed, len(ids))
    assert "session_lost" not in worker.output
    assert await asyncio.to_thread(worker.terminate) == 0
