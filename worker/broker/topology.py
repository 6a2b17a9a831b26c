"""Declares the contract's queues and exchanges at the broker. Knows no messages."""

from collections.abc import Callable, Sequence
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
    """The default of :attr:`Topology.on_vanished`."""


@dataclass(frozen=True)
class Topology(QueueNames):
    """The queues and the exchanges that must exist before a request can be served.

    Attributes:
        on_vanished: called with each part that had vanished and was declared again, such as
            ``queue 'flow-runs.create.dead'``.
    """

    on_vanished: Callable[[str], None] = field(default=_to_nobody, compare=False, repr=False)
    _stood: set[str] = field(default_factory=set, init=False, compare=False, repr=False)

    @classmethod
    def of(cls, names: QueueNames, on_vanished: Callable[[str], None] = _to_nobody) -> Self:
        """The topology with these names."""
        return cls(names.queue, names.events, names.states, names.bindings, on_vanished)

    @property
    def _parts(self) -> list[tuple[str, str]]:
        """The kind and the name of each queue and exchange."""
        return [*(("queue", name) for name in self.queues), *(("exchange", name) for name in self.exchanges)]

    async def ensure(
        self, connection: aio_pika.Connection, *, consumed: bool = False, missing: Sequence[str] | None = None
    ) -> bool:
        """Declare everything. If this user may not, check that it exists; that shows neither its
        properties nor the queue's binding.

        Args:
            consumed: the request queue exists and has consumers, so do not declare it. RabbitMQ
                3.10 forgets the consumers of a quorum queue that is declared again in the moment
                of its deletion: it neither cancels nor serves them.
            missing: as :meth:`missing` has just found it (default: look first).

        Returns:
            True if this user may declare it.

        Raises:
            TopologyMismatch: a part has other properties, or is missing and can't be declared.
            BrokerUnavailable: a part can't be declared or seen for the moment.
        """
        stood = frozenset(self._stood)
        if missing is None:
            missing = await self.missing(connection)
        channel = await connection.channel(publisher_confirms=False)
        may_declare = True
        try:
            await self.declare(channel, consumed=consumed)
            await channel.close()
        except ChannelAccessRefused as refused:
            may_declare = False
            if missing := await self.missing(connection):
                raise TopologyMismatch(
                    f"Missing at the broker: {' and '.join(missing)}. This user may not declare it "
                    f"({refused}). Run 'flow-run-worker topology declare' as a user who may."
                ) from refused
        for what in missing:
            if what in stood:
                log.warning("vanished", what=what, now="declared again")
                self.on_vanished(what)
        self._stood.update(f"{kind} '{name}'" for kind, name in self._parts)
        return may_declare

    async def missing(self, connection: aio_pika.Connection) -> list[str]:
        """List the missing queues and exchanges. Changes nothing.

        Raises:
            TopologyMismatch: another connection has a queue for itself.
            BrokerUnavailable: a part can't be looked at for the moment.
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

    async def declare(self, channel: AbstractChannel, *, consumed: bool = False) -> None:
        """Declare everything. Existing parts with the right properties stay unchanged.

        Args:
            consumed: as for :meth:`ensure`.

        Raises:
            TopologyMismatch: a part has other properties, or can't be declared. The broker has
                closed the channel.
            BrokerUnavailable: a part can't be declared for the moment.
        """
        # A queue's dead-letter queue is declared before it.
        for name in reversed(self.queues):
            if not (consumed and name == self.queue):
                await self.declare_queue(channel, name)
        for name, kind in self.exchanges.items():
            with declaring(f"exchange '{name}'"):
                exchange = await channel.declare_exchange(name, kind, durable=True)
                if name == self.exchange:
                    requests = await channel.get_queue(self.queue, ensure=False)
                    await requests.bind(exchange, self.routing_key)

    async def bind(self, connection: aio_pika.Connection) -> list[str]:
        """Bind the request queue to the exchanges of others. Nothing is ever unbound.

        Returns:
            A sentence for each binding that can't be made for now.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        faults: list[str] = []
        for binding in self.bindings:
            what = f"binding of '{self.queue}' to the exchange '{binding.exchange}'"
            channel = await connection.channel(publisher_confirms=False)
            try:
                with declaring(what):
                    queue = await channel.get_queue(self.queue, ensure=False)
                    await queue.bind(binding.exchange, binding.routing_key)
                await channel.close()
            except NothingThere as missing:
                faults.append(f"The {what} waits: {missing}.")
            except TopologyMismatch as refused:
                faults.append(str(refused))
            except ChannelAccessRefused as refused:
                faults.append(
                    f"This user may not make the {what} ({refused}). Grant it write on the queue and read on "
                    "the exchange. Or run 'flow-run-worker topology declare' as a user who may, and give "
                    "WORKER_BINDINGS to that command only."
                )
        return faults

    async def declare_queue(self, channel: AbstractChannel, name: str) -> AbstractQueue:
        """Declare one of the queues; raises as :meth:`declare` does."""
        with declaring(f"queue '{name}'"):
            return await channel.declare_queue(name, durable=True, arguments=self.queues[name])
