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
EVENTS_SUFFIX = ".events"
DELIVERY_LIMIT = 20
# RabbitMQ 4 has 20 unless it is told otherwise. -1 is none there, but RabbitMQ 3.10 takes it for a
# limit that the first return exceeds, and drops the message. So it is a number that none reaches.
NO_DELIVERY_LIMIT = 2**31 - 1


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
        events: whether the outbox for events (durable quorum queue) stands as well.
    """

    queue: str
    dead_letter_queue: str
    exchange: str | None
    routing_key: str | None
    events: bool = False

    @classmethod
    def from_queue_name(cls, queue: str, *, events: bool = False) -> "Topology":
        """Derive the names: ``flow-runs.create`` gives the exchange ``flow-runs`` and the routing
        key ``create``.

        Args:
            events: with the outbox.
        """
        exchange, dot, routing_key = queue.rpartition(".")
        named = bool(dot and exchange and routing_key)
        return cls(
            queue=queue,
            dead_letter_queue=queue + DEAD_LETTER_SUFFIX,
            exchange=exchange if named else None,
            routing_key=routing_key if named else None,
            events=events,
        )

    @property
    def events_queue(self) -> str:
        """The name of the outbox, whether it stands or not."""
        return self.queue + EVENTS_SUFFIX

    @property
    def queues(self) -> dict[str, Mapping[str, Any]]:
        """The arguments of each queue by its name."""
        queues = {self.queue: self.queue_arguments, self.dead_letter_queue: self.dead_letter_queue_arguments}
        return {**queues, self.events_queue: self.events_queue_arguments} if self.events else queues

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

    @property
    def events_queue_arguments(self) -> Mapping[str, Any]:
        """The outbox's arguments: one consumer at a time, and an event waits for Prefect's API as
        long as it takes.
        """
        return {
            "x-queue-type": "quorum",
            "x-delivery-limit": NO_DELIVERY_LIMIT,
            "x-single-active-consumer": True,
            "x-overflow": "reject-publish",
        }

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
        arguments = dict(self.queues[name])
        return await _declare(
            f"queue '{name}'", channel.declare_queue(name, durable=True, arguments=arguments)
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
            for name in self.queues:
                await channel.get_queue(name)
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
