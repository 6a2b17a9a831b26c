"""Producers that keep publishing through every fault, and a check of all outcomes. It uses no code
of the worker.
"""

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Self
from uuid import uuid4

import aio_pika

from tests.support.database import fetch
from tests.support.rabbitmq import RabbitMQ

_LOST = (aio_pika.exceptions.AMQPError, ConnectionError, OSError, RuntimeError, TimeoutError)


@contextmanager
def lost_connection() -> Iterator[None]:
    """Ignore the errors of aio-pika when a connection ends, among them a bare Exception."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, _LOST) and type(error) is not Exception:
            raise


@dataclass(frozen=True)
class Verdict:
    """The outcome of all requests that the broker confirmed.

    Attributes:
        lost: requests without a reply, without a run, or refused and not in the dead letters.
        doubled: keys and messages with more than one run, in the database or in the replies.
        left: messages still in the request queue.
        strays: dead letters that the worker did not refuse (given up by the broker).
    """

    published: int
    runs: int
    replies: int
    created: int
    refused: int
    dead_letters: int
    lost: int
    doubled: int
    left: int
    strays: int

    @property
    def sound(self) -> bool:
        """Whether every promise was kept."""
        return (self.lost, self.doubled, self.left, self.strays) == (0, 0, 0, 0)


@dataclass(frozen=True)
class Request:
    """A request as the check identifies it: by its key, or its message; ``None`` for one that has
    to be refused.
    """

    identity: str | None


class Load:
    """Publishes requests: some for used keys, some without a key, some that have to be refused.

    A request counts as published once the broker has confirmed it; until then it is published
    again, as a producer would do. The reply queue is durable, so replies survive the broker's
    restart like requests.
    """

    def __init__(self, url: str, queue: str, *, seed: int, replicated: bool = False) -> None:
        self._url = url
        # A classic queue lives on one node of a cluster, and is gone while that node is away.
        self._replies_arguments = {"x-queue-type": "quorum"} if replicated else {}
        self._queue = queue
        self._random = random.Random(seed)
        self._replies_queue = f"replies-{uuid4().hex[:8]}"
        self.flow_id = str(uuid4())
        self.requests: dict[str, Request] = {}
        self.replies: dict[str, list[tuple[int, str | None]]] = defaultdict(list)
        self._publishing: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._go = asyncio.Event()
        self._go.set()
        self._number = 0
        self._under_way = 0
        self._connection: Any = None
        self._connecting = asyncio.Lock()
        self._closing: set[asyncio.Future[Any]] = set()

    async def __aenter__(self) -> Self:
        self._collecting = asyncio.create_task(self._collect())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        self._go.set()
        self._abandon()
        tasks = (self._collecting, *self._publishing, *self._closing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, producers: int = 2, pause: float = 0.005) -> None:
        """Begin to publish."""
        self._publishing = [asyncio.create_task(self._produce(pause)) for _ in range(producers)]

    async def stop(self) -> None:
        """Publish no more once everything sent is confirmed."""
        self._stop.set()
        self._go.set()
        await asyncio.gather(*self._publishing)

    @property
    def unanswered(self) -> int:
        """How many requests have no reply yet."""
        return len(self.requests) - sum(1 for each in self.requests if each in self.replies)

    async def settled(self, seconds: float = 300.0) -> None:
        """Wait until each request has a reply; raises TimeoutError."""
        try:
            async with asyncio.timeout(seconds):
                while self.unanswered:
                    await asyncio.sleep(0.2)
        except TimeoutError:
            missing = [each for each in self.requests if each not in self.replies]
            raise TimeoutError(f"{len(missing)} of {len(self.requests)} unanswered, {missing[:5]}") from None

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Publish nothing within, and begin with every request answered."""
        self._go.clear()
        try:
            while self._under_way:
                await asyncio.sleep(0.05)
            await self.settled()
            await asyncio.sleep(0.5)  # a reply arrives before its acknowledgement
            yield
        finally:
            self._go.set()

    async def until_on_disk(self, broker: RabbitMQ) -> None:
        """Wait until our queue and the worker's would survive a kill of the broker."""
        async with asyncio.timeout(180):
            while not all(broker.on_disk(queue) for queue in (self._queue, f"{self._queue}.dead")):
                await asyncio.sleep(0.1)

    async def _produce(self, pause: float) -> None:
        while not self._stop.is_set():
            await self._go.wait()
            self._under_way += 1
            try:
                await self._one()
            finally:
                self._under_way -= 1
            await asyncio.sleep(pause)

    async def _one(self) -> None:
        correlation_id = uuid4().hex
        body: dict[str, Any] = {"flow_id": self.flow_id}
        chance = self._random.random()
        identity: str | None = None
        message_id = None
        if chance < 0.05:
            body["no_such_field"] = "red"
        elif chance < 0.2:
            # The message id identifies it; its name lets us find the run.
            identity = message_id = body["name"] = f"message-{correlation_id}"
        else:
            number = self._random.randrange(max(self._number, 1)) if chance < 0.4 else self._number
            identity = body["idempotency_key"] = f"key-{number}"
        self._number += 1
        message = aio_pika.Message(
            json.dumps(body).encode(),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            reply_to=self._replies_queue,
            correlation_id=correlation_id,
            message_id=message_id,
        )
        confirmed = False
        while not confirmed:
            with lost_connection():
                async with asyncio.timeout(10):
                    channel = await self._channel()
                    await channel.default_exchange.publish(message, routing_key=self._queue, mandatory=True)
                confirmed = True
            if not confirmed:
                self._abandon()
                await asyncio.sleep(0.1)
        self.requests[correlation_id] = Request(identity)

    async def _channel(self) -> Any:
        async with self._connecting:
            if self._connection is None:
                self._connection = await aio_pika.connect(self._url, timeout=5)
                self._shared = await self._connection.channel(on_return_raises=True)
            return self._shared

    def _abandon(self) -> None:
        """Use another connection from now on, without waiting for this one to close."""
        connection, self._connection = self._connection, None
        if connection is not None:
            closing = asyncio.ensure_future(connection.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closed)

    def _closed(self, closing: "asyncio.Future[Any]") -> None:
        self._closing.discard(closing)
        if not closing.cancelled():
            closing.exception()

    async def _collect(self) -> None:
        while True:
            with lost_connection():
                connection = await aio_pika.connect(self._url)
                async with connection:
                    channel = await connection.channel()
                    queue = await channel.declare_queue(
                        self._replies_queue, durable=True, arguments=self._replies_arguments
                    )
                    async with queue.iterator() as messages:
                        async for message in messages:
                            body = json.loads(message.body)
                            reply = (int(str(message.headers["status"])), body.get("id"))
                            self.replies[message.correlation_id or ""].append(reply)
                            await message.ack()
            await asyncio.sleep(0.2)

    async def verdict(self, database_url: str) -> Verdict:
        """Count; call this when all is settled and the workers have ended."""
        rows = await fetch(
            database_url,
            "SELECT coalesce(idempotency_key, name) AS identity, count(*) AS n FROM flow_run "
            f"WHERE flow_id = '{self.flow_id}' GROUP BY 1",
        )
        runs: dict[str, int] = {row["identity"]: row["n"] for row in rows}
        letters, strays, left = await self._dead_letters()
        lost = doubled = refused = 0
        ids: dict[str, set[str]] = defaultdict(set)
        for correlation_id, request in self.requests.items():
            replies = self.replies.get(correlation_id, [])
            if request.identity is None:
                refused += 1
                lost += {status for status, _ in replies} != {422} or correlation_id not in letters
            else:
                found = {run_id for status, run_id in replies if status in (200, 201) and run_id}
                ids[request.identity] |= found
                lost += not found or request.identity not in runs
        doubled += sum(count > 1 for count in runs.values())
        doubled += sum(len(found) > 1 for found in ids.values())
        statuses = Counter(status for each in self.requests for status, _ in self.replies.get(each, []))
        return Verdict(
            published=len(self.requests),
            runs=sum(runs.values()),
            replies=statuses.total(),
            created=statuses[201],
            refused=refused,
            dead_letters=len(letters),
            lost=lost,
            doubled=doubled,
            left=left,
            strays=strays,
        )

    async def _dead_letters(self) -> tuple[set[str], int, int]:
        """The correlation ids of refused requests, the number of other dead letters, and the length
        of the request queue.
        """
        connection = await aio_pika.connect(self._url)
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(500)
            queue = await channel.declare_queue(f"{self._queue}.dead", passive=True)
            letters: set[str] = set()
            strays = 0
            remaining = queue.declaration_result.message_count or 0
            if remaining:
                async with queue.iterator() as messages:
                    async for message in messages:
                        if "x-error-status" in message.headers:
                            letters.add(message.correlation_id or "")
                        else:
                            strays += 1
                        await message.ack()
                        remaining -= 1
                        if not remaining:
                            break
            requests = await channel.declare_queue(self._queue, passive=True)
            return letters, strays, requests.declaration_result.message_count or 0
