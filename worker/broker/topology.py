"""The queues, the exchange and the binding of the wire contract, all named after one queue; knows
no messages.
"""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

Declared = TypeVar("Declared")

DEAD_LETTER_SUFFIX = ".dead"
DELIVERY_LIMIT = 20


class TopologyMismatch(Exception):
    """Something of the same name stands at the broker with other properties; its message says what
    and what to do.
    """


@dataclass(frozen=True, slots=True)
class Topology:
    """What must stand at the broker before a request can be served.

    Attributes:
        queue: where requests wait (durable quorum queue).
        dead_letter_queue: where refused requests are kept (durable quorum queue).
        exchange: the direct exchange for producers, or None where the queue's name has no dot.
        routing_key: the key that leads from ``exchange`` to ``queue``.
    """

    queue: str
    dead_letter_queue: str
    exchange: str | None
    routing_key: str | None

    @classmethod
    def from_queue_name(cls, queue: str) -> "Topology":
        """Derive the names: ``flow-runs.create`` gives the exchange ``flow-runs`` and the routing
        key ``create``.
        """
        exchange, dot, routing_key = queue.rpartition(".")
        named = bool(dot and exchange and routing_key)
        return cls(
            queue=queue,
            dead_letter_queue=queue + DEAD_LETTER_SUFFIX,
            exchange=exchange if named else None,
            routing_key=routing_key if named else None,
        )

    @property
    def queue_arguments(self) -> Mapping[str, Any]:
        """The request queue's arguments: nothing is dropped on overflow, and a poisonous request
        ends in the dead letters.
        """
        return {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self.dead_letter_queue,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }

    @property
    def dead_letter_queue_arguments(self) -> Mapping[str, Any]:
        return {"x-queue-type": "quorum"}

    async def declare(self, channel: AbstractChannel) -> None:
        """Declare everything; what already stands as it should is left as it is.

        Raises:
            TopologyMismatch: something stands there with other properties (the broker closes the
                channel over it).
        """
        await self.declare_queue(channel, self.dead_letter_queue)
        queue = await self.declare_queue(channel, self.queue)
        if self.exchange is not None:
            exchange = await _declare(
                f"exchange '{self.exchange}'", channel.declare_exchange(self.exchange, durable=True)
            )
            await queue.bind(exchange, self.routing_key)

    async def declare_queue(self, channel: AbstractChannel, name: str) -> AbstractQueue:
        """Declare one of the two queues; raises as :meth:`declare` does."""
        arguments = self.queue_arguments if name == self.queue else self.dead_letter_queue_arguments
        return await _declare(
            f"queue '{name}'", channel.declare_queue(name, durable=True, arguments=dict(arguments))
        )

    async def check(self, channel: AbstractChannel, refused: Exception) -> None:
        """See that everything stands, with no right to declare it; with which properties can't be
        seen so.

        Args:
            refused: why it can't be declared.

        Raises:
            TopologyMismatch: something is missing.
        """
        try:
            await channel.get_queue(self.dead_letter_queue)
            await channel.get_queue(self.queue)
            if self.exchange is not None:
                await channel.get_exchange(self.exchange)
        except ChannelNotFoundEntity as error:
            raise TopologyMismatch(
                f"{str(error).removeprefix('NOT_FOUND - ')}, and this user may not declare it ({refused}). "
                "Run 'flow-run-worker topology declare' as one who may."
            ) from error


async def _declare(what: str, declaration: Awaitable[Declared]) -> Declared:
    try:
        return await declaration
    except ChannelPreconditionFailed as error:
        raise TopologyMismatch(
            f"The {what} stands at the broker with other properties than the worker declares: "
            f"{str(error).removeprefix('PRECONDITION_FAILED - ')}. "
            "Delete it there (after emptying it), or choose another name with WORKER_QUEUE."
        ) from error
