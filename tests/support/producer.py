"""A producer for tests: plain aio-pika with its own reply queue, and no code of the worker."""

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Self
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage


@dataclass(frozen=True)
class Reply:
    """A reply, or a dead letter, as it arrived."""

    status: int
    type: str | None
    correlation_id: str | None
    message_id: str | None
    app_id: str | None
    content_type: str | None
    timestamp: datetime | None
    headers: dict[str, Any]
    raw: bytes

    @classmethod
    def of(cls, message: AbstractIncomingMessage) -> Self:
        headers = dict(message.headers)
        return cls(
            status=headers.get("status", 0),
            type=message.type,
            correlation_id=message.correlation_id,
            message_id=message.message_id,
            app_id=message.app_id,
            content_type=message.content_type,
            timestamp=message.timestamp,
            headers=headers,
            raw=message.body,
        )

    @cached_property
    def body(self) -> Any:
        """The body as JSON; None if it is not JSON."""
        try:
            return json.loads(self.raw)
        except (ValueError, RecursionError):
            return None


class Producer:
    """Publishes requests and collects every reply to them."""

    def __init__(self, url: str, queue: str) -> None:
        self._url = url
        self.queue = queue
        self.replies: dict[str, list[Reply]] = defaultdict(list)
        self._arrived = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self.connection = await aio_pika.connect(self._url)
        self.channel = await self.connection.channel()
        replies = await self.channel.declare_queue(exclusive=True)
        self.reply_to = replies.name
        await replies.consume(self._on_reply, no_ack=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.close()

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        async with self._arrived:
            self.replies[message.correlation_id or ""].append(Reply.of(message))
            self._arrived.notify_all()

    async def publish(self, body: bytes | dict[str, Any], **properties: Any) -> str:
        """Publish a request that wants a reply; returns its correlation id."""
        correlation_id: str = properties.pop("correlation_id", None) or uuid4().hex
        message = aio_pika.Message(
            body if isinstance(body, bytes) else json.dumps(body).encode(),
            **{
                "content_type": "application/json",
                "delivery_mode": aio_pika.DeliveryMode.PERSISTENT,
                "reply_to": self.reply_to,
                **properties,
            },
            correlation_id=correlation_id,
        )
        await self.channel.default_exchange.publish(message, routing_key=self.queue, mandatory=True)
        return correlation_id

    async def replies_to(self, correlation_ids: list[str], seconds: float = 180.0) -> list[Reply]:
        """The first reply to each of these requests, once all have arrived."""
        async with asyncio.timeout(seconds), self._arrived:
            await self._arrived.wait_for(lambda: all(self.replies[each] for each in correlation_ids))
        return [self.replies[each][0] for each in correlation_ids]

    async def request(self, body: bytes | dict[str, Any], **properties: Any) -> Reply:
        """Publish a request and wait for its reply."""
        (reply,) = await self.replies_to([await self.publish(body, **properties)])
        return reply

    async def dead_letters(self, count: int, seconds: float = 180.0) -> list[Reply]:
        """Take this many dead letters, and wait until they are there."""
        letters: list[Reply] = []
        async with asyncio.timeout(seconds):
            queue = await self.channel.get_queue(f"{self.queue}.dead")
            while len(letters) < count:
                message = await queue.get(no_ack=True, fail=False)
                if message is None:
                    await asyncio.sleep(0.02)
                else:
                    letters.append(Reply.of(message))
        return letters

    async def depth(self, queue: str | None = None) -> int:
        """How many messages are ready in a queue."""
        declared = await self.channel.declare_queue(queue or self.queue, passive=True)
        return declared.declaration_result.message_count or 0
