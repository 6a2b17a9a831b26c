"""Producers that keep publishing through every fault, and the check of what became of it all. Nothing of the worker's code."""

import asyncio
import json
import random
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self
from uuid import uuid4

import aio_pika

from tests.database import fetch


@dataclass(frozen=True)
class Verdict:
    """What became of all requests that the broker took over."""

    published: int
    runs: int
    replies: int
    created: int
    lost: int
    doubled: int
    dead_letters: int


class Load:
    """Publishes requests, some of them for keys that were used before, some refused, and collects the replies.

    A request counts as published once the broker has confirmed it; until then it is published again, as a producer would.
    The reply queue is durable, so that replies outlive the broker's restart as the requests do.
    """

    def __init__(self, url: str, queue: str, *, seed: int) -> None:
        self._url = url
        self._queue = queue
        self._random = random.Random(seed)
        self._replies_queue = f"replies-{uuid4().hex[:8]}"
        self.flow_id = str(uuid4())
        self.keys: dict[str, str | None] = {}
        self.replies: dict[str, list[tuple[int, str | None]]] = defaultdict(list)
        self._publishing: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._number = 0

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._collect())]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        for task in (*self._tasks, *self._publishing):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._publishing, return_exceptions=True)

    def start(self, producers: int = 2, pause: float = 0.005) -> None:
        """Begin to publish."""
        self._publishing = [asyncio.create_task(self._produce(pause)) for _ in range(producers)]

    async def stop(self) -> None:
        """Publish no more, once what is under way is confirmed."""
        self._stop.set()
        await asyncio.gather(*self._publishing)

    async def _produce(self, pause: float) -> None:
        while not self._stop.is_set():
            key = f"key-{self._random.randrange(max(self._number, 1))}" if self._random.random() < 0.2 else f"key-{self._number}"
            self._number += 1
            body: dict[str, Any] = {"flow_id": self.flow_id, "idempotency_key": key}
            refused = self._random.random() < 0.05
            if refused:
                body["colour"] = "red"
            correlation_id = uuid4().hex
            await self._confirmed(correlation_id, json.dumps(body).encode())
            self.keys[correlation_id] = None if refused else key
            await asyncio.sleep(pause)

    async def _confirmed(self, correlation_id: str, body: bytes) -> None:
        message = aio_pika.Message(
            body,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            reply_to=self._replies_queue,
            correlation_id=correlation_id,
        )
        while True:
            try:
                async with asyncio.timeout(10):
                    channel = await self._channel()
                    await channel.default_exchange.publish(message, routing_key=self._queue, mandatory=True)
                return
            except (aio_pika.exceptions.AMQPError, ConnectionError, OSError, RuntimeError, TimeoutError):
                await asyncio.sleep(0.1)

    async def _channel(self) -> Any:
        if getattr(self, "_connection", None) is None or self._connection.is_closed or self._shared.is_closed:
            with suppress(AttributeError, Exception):
                await self._connection.close()
            self._connection = await aio_pika.connect(self._url)
            self._shared = await self._connection.channel(on_return_raises=True)
        return self._shared

    async def _collect(self) -> None:
        while True:
            with suppress(aio_pika.exceptions.AMQPError, ConnectionError, OSError, RuntimeError, TimeoutError):
                connection = await aio_pika.connect(self._url)
                async with connection:
                    channel = await connection.channel()
                    queue = await channel.declare_queue(self._replies_queue, durable=True)
                    async with queue.iterator() as messages:
                        async for message in messages:
                            body = json.loads(message.body)
                            reply = (int(str(message.headers["status"])), body.get("id"))
                            self.replies[message.correlation_id or ""].append(reply)
                            await message.ack()
            await asyncio.sleep(0.2)

    async def verdict(self, database_url: str, seconds: float = 60.0) -> Verdict:
        """Wait until everything published has its reply, or for so long, and count."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(self.replies[each] for each in self.keys):
                    await asyncio.sleep(0.1)
        rows = await fetch(
            database_url,
            f"SELECT idempotency_key AS key, count(*) AS n FROM flow_run WHERE flow_id = '{self.flow_id}' GROUP BY 1",
        )
        runs = {row["key"]: row["n"] for row in rows}
        wanted = {key for key in self.keys.values() if key is not None}
        ids: dict[str, set[str]] = defaultdict(set)
        for correlation_id, key in self.keys.items():
            if key is not None:
                ids[key] |= {run_id for status, run_id in self.replies[correlation_id] if status < 400 and run_id}
        refused = sum(key is None for key in self.keys.values())
        connection = await aio_pika.connect(self._url)
        async with connection:
            channel = await connection.channel()
            dead = await channel.declare_queue(f"{self._queue}.dead", passive=True)
            dead_letters = dead.declaration_result.message_count or 0
        return Verdict(
            published=len(self.keys),
            runs=sum(runs.values()),
            replies=sum(len(self.replies[each]) for each in self.keys),
            created=sum(status == 201 for each in self.keys for status, _ in self.replies[each]),
            lost=sum(not self.replies[each] for each in self.keys) + len(wanted - runs.keys()) + max(refused - dead_letters, 0),
            doubled=sum(count > 1 for count in runs.values()) + sum(len(found) > 1 for found in ids.values()),
            dead_letters=dead_letters,
        )
