"""Watches the topology at the broker: declares vanished parts again, and logs harmful policies. It
serves no request, and disturbs none.
"""

import asyncio

import structlog
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from worker.amqp.watch import WatchedConnection
from worker.broker.connection import BrokerRefused, BrokerUnavailable, ChannelLost, connected, lost_with
from worker.broker.declaring import TopologyMismatch
from worker.broker.management import Management, ManagementUnavailable
from worker.broker.policies import harms
from worker.broker.topology import Topology
from worker.observability import metrics
from worker.tasks.backoff import Backoff, pause
from worker.tasks.beside import Beside

log = structlog.get_logger(__name__)

# Seconds between two looks. A missing queue must be seen within a minute, and a look takes some
# seconds at a busy broker.
LOOK_EVERY = 30.0
# Seconds between two looks while a binding is missing. Messages that are published meanwhile don't
# reach the queue. Each look costs a line in the broker's log.
LOOK_AGAIN = 5.0
# Seconds for one look. A quorum queue without a majority never answers.
LOOK_TIMEOUT = 20.0
# Seconds for the current look to end when the worker stops.
STOP_SECONDS = 5.0


class TopologyWatch(Beside):
    """Looks at the topology until it is stopped, on its own open connection.

    Args:
        amqp_url: the broker's.
        management_url: of its management API; None to use AMQP only.
        topology: the parts that must exist.
        every: seconds between two looks.
    """

    def __init__(
        self, amqp_url: str, management_url: str | None, topology: Topology, every: float = LOOK_EVERY
    ) -> None:
        super().__init__(STOP_SECONDS)
        self._amqp_url = amqp_url
        self._management_url = management_url
        self._topology = topology
        self._every = every
        self._may_declare = True
        self._was_bound = False
        self._queue_was_missing = False
        self._unbound: list[str] = []
        self._fault: str | None = None
        self._policies: list[str] = []
        self._unseen: str | None = None

    async def _run(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                await self._stay(backoff)
            except (BrokerUnavailable, BrokerRefused) as error:
                self._away(str(error))
            except TimeoutError:
                self._away(f"no answer within {LOOK_TIMEOUT:g} seconds")
            except CONNECTION_EXCEPTIONS as error:
                self._away(str(ChannelLost(error)))
            except Exception as error:  # the edge: a failure here must not end the serving
                log.exception("topology_watch_failed")
                self._away(repr(error))
            await backoff.sleep(self._stopping)

    async def _stay(self, backoff: Backoff) -> None:
        """Look again and again, until the connection ends or the watch is stopped."""
        name = "flow-run-worker topology"
        async with connected(self._amqp_url, name=name, connection_class=WatchedConnection) as connection:
            self._may_declare = True
            while not (self._stopping.is_set() or connection.is_closed):
                bound = await self._ask_management()
                try:
                    async with asyncio.timeout(LOOK_TIMEOUT):
                        with lost_with(connection):
                            self._tell(await self._look(connection, bound))
                except TopologyMismatch as error:
                    self._tell(str(error))
                backoff.reset()
                await pause(min(self._every, LOOK_AGAIN) if self._unbound else self._every, self._stopping)

    async def _look(self, connection: WatchedConnection, bound: bool | None) -> str | None:
        """Check that all parts exist, and declare the missing ones. The request queue is left to
        the session, which loses its consumer with it; the next look declares it if it is still
        missing.

        If this user may not declare, each further look only checks: the broker logs each refusal.

        Args:
            bound: the queue was bound a moment ago; None if unknown.

        Returns:
            A fault that could not be mended, or None.
        """
        missing = await self._topology.missing(connection)
        queue_is_missing = f"queue '{self._topology.queue}'" in missing
        waited, self._queue_was_missing = self._queue_was_missing, queue_is_missing
        if queue_is_missing and not waited:
            return None
        if self._may_declare or missing:
            self._may_declare = await self._topology.ensure(
                connection, consumed=not queue_is_missing, missing=missing
            )
        self._unbound = await self._topology.bind(connection)
        binding = f"binding of the exchange '{self._topology.exchange}' to '{self._topology.queue}'"
        if bound is False and not self._may_declare:
            return (
                f"Missing at the broker: the {binding}. A request to this exchange reaches nobody. "
                "This user may not make it. Run 'flow-run-worker topology declare' as a user who may."
            )
        if bound is False and self._was_bound:
            log.warning("vanished", what=binding, now="declared again")
            metrics.declared_again(binding)
        self._was_bound = True
        return " ".join(self._unbound) or None

    async def _ask_management(self) -> bool | None:
        """Note harmful policies of the queues. Returns true for a bound queue, None if unknown."""
        if self._management_url is None:
            return None
        topology, bound = self._topology, None
        found: list[str] = []
        try:
            async with Management(self._management_url, self._amqp_url) as management:
                for name in topology.queues:
                    if (queue := await management.queue(name)) is not None:
                        for harm in harms(topology, management.vhost, name, queue):
                            found.append(f"{name}: {harm.text}")
                if topology.exchange is not None and topology.routing_key is not None:
                    bound = await management.bound(topology.exchange, topology.routing_key, topology.queue)
        except ManagementUnavailable as error:
            self._tell_policies([], f"not checked: {error}")
        else:
            self._tell_policies(found, None)
        return bound

    def _away(self, reason: str) -> None:
        """Note why the watch can't look, unless the session is away too and says so itself."""
        if metrics.readiness.broker is None:
            self._tell(f"can't be looked at: {reason}")

    def _tell(self, fault: str | None) -> None:
        if fault != self._fault:
            if fault is not None:
                log.warning("topology_faulty", error=fault)
            else:
                log.info("topology_stands")
        self._fault = fault
        metrics.topology_faulty(fault)

    def _tell_policies(self, found: list[str], unseen: str | None) -> None:
        if found != self._policies:
            for text in found:
                log.warning("policy_harms", text=text)
            if not found and unseen is None:
                log.info("policies_harmless")
        if unseen is not None and unseen != self._unseen:
            log.warning("policies_not_checked", error=unseen)
        self._policies, self._unseen = found, unseen
        metrics.policies(found, unseen)
