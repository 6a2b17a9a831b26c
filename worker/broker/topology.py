"""The queues, the exchange and the binding of the wire contract, all named after one queue; knows
no messages.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractQueue
from aiormq.exceptions import ChannelAccessRefused

from worker.broker.declaring import NothingThere, TopologyMismatch, declaring

__all__ = ["EVENTS_SUFFIX", "NO_DELIVERY_LIMIT", "Topology", "TopologyMismatch"]

log = structlog.get_logger(__name__)

EVENTS_SUFFIX = ".events"
# RabbitMQ 4 has 20 unless it is told otherwise. -1 is none there, but RabbitMQ 3.10 takes it for a
# limit that the first return exceeds, and drops the message. So it is a number that none reaches.
NO_DELIVERY_LIMIT = 2**31 - 1


def _to_nobody(what: str) -> None:
    """Where no one is to be told."""


@dataclass(frozen=True)
class Topology:
    """What must stand at the broker before a request can be served.

    Attributes:
        queue: where requests wait; all else is named after it.
        events: whether the outbox for events stands as well.
        on_vanished: is told of what stood before, was missing, and was declared again, such as
            ``queue 'flow-runs.create.dead'``.
    """

    queue: str
    events: bool = False
    on_vanished: Callable[[str], None] = field(default=_to_nobody, compare=False, repr=False)
    _stood: set[str] = field(default_factory=set, init=False, compare=False, repr=False)

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

    @property
    def _parts(self) -> list[tuple[str, str]]:
        """What stands by itself: its kind and its name."""
        exchange = [] if self.exchange is None else [("exchange", self.exchange)]
        return [*(("queue", name) for name in self.queues), *exchange]

    async def ensure(self, connection: aio_pika.Connection) -> bool:
        """Declare everything; or, as a user who may not, see that it stands. With which properties
        can't be seen so, nor whether the queue is bound.

        Returns:
            Whether this user may declare it.

        Raises:
            TopologyMismatch: it stands otherwise, or doesn't and can't be declared.
            BrokerUnavailable: it can't be declared or seen for the moment.
        """
        stood = frozenset(self._stood)
        missing = await self.missing(connection)
        channel = await connection.channel(publisher_confirms=False)
        may_declare = True
        try:
            await self.declare(channel)
            await channel.close()
        except ChannelAccessRefused as refused:
            may_declare = False
            if missing := await self.missing(connection):
                raise TopologyMismatch(
                    f"Missing at the broker: {' and '.join(missing)}; and this user may not declare it "
                    f"({refused}). Run 'flow-run-worker topology declare' as one who may."
                ) from refused
        for what in missing:
            if what in stood:
                log.warning("vanished", what=what, now="declared again")
                self.on_vanished(what)
        self._stood.update(f"{kind} '{name}'" for kind, name in self._parts)
        return may_declare

    async def missing(self, connection: aio_pika.Connection) -> list[str]:
        """Which queues do not stand, and whether the exchange does not; changes nothing.

        Raises:
            TopologyMismatch: one can't be looked at, as another connection has it.
            BrokerUnavailable: one can't be looked at for the moment.
        """
        missing: list[str] = []
        channel: AbstractChannel | None = None
        for kind, name in self._parts:
            channel = channel or await connection.channel(publisher_confirms=False)
            try:
                with declaring(f"{kind} '{name}'"):
                    await (channel.get_queue(name) if kind == "queue" else channel.get_exchange(name))
            except NothingThere:
                missing.append(f"{kind} '{name}'")
                channel = None  # the broker has closed it
        if channel is not None:
            await channel.close()
        return missing

    async def declare(self, channel: AbstractChannel) -> None:
        """Declare everything; what already stands as it should is left as it is.

        Raises:
            TopologyMismatch: something stands there with other properties, or can't be declared
                (the broker closes the channel over it).
            BrokerUnavailable: something can't be declared for the moment.
        """
        # That to which another leads comes first.
        declared = {name: await self.declare_queue(channel, name) for name in reversed(self.queues)}
        if self.exchange is not None:
            with declaring(f"exchange '{self.exchange}'"):
                exchange = await channel.declare_exchange(self.exchange, durable=True)
                await declared[self.queue].bind(exchange, self.routing_key)

    async def declare_queue(self, channel: AbstractChannel, name: str) -> AbstractQueue:
        """Declare one of the queues; raises as :meth:`declare` does."""
        with declaring(f"queue '{name}'"):
            return await channel.declare_queue(name, durable=True, arguments=self.queues[name])
