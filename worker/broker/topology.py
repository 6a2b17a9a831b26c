"""The queues, the exchange and the binding of the wire contract, all named after one queue; knows
no messages.
"""

from collections.abc import Awaitable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused

Declared = TypeVar("Declared")

EVENTS_SUFFIX = ".events"
# RabbitMQ 4 has 20 unless it is told otherwise. -1 is none there, but RabbitMQ 3.10 takes it for a
# limit that the first return exceeds, and drops the message. So it is a number that none reaches.
NO_DELIVERY_LIMIT = 2**31 - 1


class TopologyMismatch(Exception):
    """Something of the same name stands at the broker with other properties; its message says what
    and what to do.
    """


@dataclass(frozen=True)
class Topology:
    """What must stand at the broker before a request can be served.

    Attributes:
        queue: where requests wait; all else is named after it.
        events: whether the outbox for events stands as well.
    """

    queue: str
    events: bool = False

    @cached_property
    def dead_letter_queue(self) -> str:
        """Where refused requests are kept."""
        return self.queue + ".dead"

    @cached_property
    def events_queue(self) -> str:
        """The name of the outbox, whether it stands or not."""
        return self.queue + EVENTS_SUFFIX

    @property
    def exchange(self) -> str | None:
        """The direct exchange for producers, ``flow-runs`` for ``flow-runs.create``; None where
        the queue's name has no dot.
        """
        exchange, _, routing_key = self.queue.rpartition(".")
        return exchange if exchange and routing_key else None

    @property
    def routing_key(self) -> str | None:
        """The key that leads from :attr:`exchange` to the queue: ``create``."""
        return self.queue.rpartition(".")[2] if self.exchange else None

    @property
    def queues(self) -> dict[str, dict[str, Any]]:
        """The arguments of each queue by its name; all are durable quorum queues."""
        queues: dict[str, dict[str, Any]] = {
            # Nothing is dropped on overflow, and a poisonous request ends in the dead letters.
            self.queue: {
                "x-queue-type": "quorum",
                "x-delivery-limit": 20,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": self.dead_letter_queue,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
            self.dead_letter_queue: {"x-queue-type": "quorum"},
        }
        if self.events:
            # One consumer at a time, and an event waits for Prefect's API as long as it takes.
            queues[self.events_queue] = {
                "x-queue-type": "quorum",
                "x-delivery-limit": NO_DELIVERY_LIMIT,
                "x-single-active-consumer": True,
                "x-overflow": "reject-publish",
            }
        return queues

    async def ensure(self, connection: aio_pika.Connection) -> None:
        """Declare everything or, as a user who may not, see that it stands; with which properties
        can't be seen so.

        Raises:
            TopologyMismatch: it stands otherwise, or doesn't and may not be declared.
        """
        channel = await connection.channel()
        try:
            await self.declare(channel)
        except ChannelAccessRefused as refused:
            channel = await connection.channel()
            try:
                for name in self.queues:
                    await channel.get_queue(name)
                if self.exchange is not None:
                    await channel.get_exchange(self.exchange)
            except ChannelNotFoundEntity as error:
                raise TopologyMismatch(
                    f"{str(error).removeprefix('NOT_FOUND - ')}, and this user may not declare it "
                    f"({refused}). Run 'flow-run-worker topology declare' as one who may."
                ) from error
        await channel.close()

    async def declare(self, channel: AbstractChannel) -> None:
        """Declare everything; what already stands as it should is left as it is.

        Raises:
            TopologyMismatch: something stands there with other properties (the broker closes the
                channel over it).
        """
        # That to which another leads comes first.
        declared = {name: await self.declare_queue(channel, name) for name in reversed(self.queues)}
        if self.exchange is not None:
            exchange = await _declare(
                f"exchange '{self.exchange}'", channel.declare_exchange(self.exchange, durable=True)
            )
            await declared[self.queue].bind(exchange, self.routing_key)

    async def declare_queue(self, channel: AbstractChannel, name: str) -> AbstractQueue:
        """Declare one of the queues; raises as :meth:`declare` does."""
        declaration = channel.declare_queue(name, durable=True, arguments=self.queues[name])
        return await _declare(f"queue '{name}'", declaration)


async def _declare(what: str, declaration: Awaitable[Declared]) -> Declared:
    try:
        return await declaration
    except ChannelPreconditionFailed as error:
        raise TopologyMismatch(
            f"The {what} stands at the broker with other properties than the worker declares: "
            f"{str(error).removeprefix('PRECONDITION_FAILED - ')}. "
            "Delete it there (after emptying it), or choose another name with WORKER_QUEUE."
        ) from error
