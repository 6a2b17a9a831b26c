"""Declares what the contract names at the broker; knows no messages."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractQueue
from aiormq.exceptions import ChannelAccessRefused

from worker.broker.declaring import NothingThere, TopologyMismatch, declaring
from worker.contract.topology import QueueNames

__all__ = ["Topology", "TopologyMismatch"]

log = structlog.get_logger(__name__)


def _to_nobody(what: str) -> None:
    """Where no one is to be told."""


@dataclass(frozen=True)
class Topology(QueueNames):
    """What must stand at the broker before a request can be served.

    Attributes:
        on_vanished: is told of what stood before, was missing, and was declared again, such as
            ``queue 'flow-runs.create.dead'``.
    """

    on_vanished: Callable[[str], None] = field(default=_to_nobody, compare=False, repr=False)
    _stood: set[str] = field(default_factory=set, init=False, compare=False, repr=False)

    @classmethod
    def of(cls, names: QueueNames, on_vanished: Callable[[str], None] = _to_nobody) -> Self:
        """Of these names."""
        return cls(names.queue, names.events, on_vanished)

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
