"""The worker's life: open the database, stay at the broker, serve, and stop cleanly. Decides
nothing about requests.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from time import monotonic
from typing import Any, Literal, TypeVar

import structlog
from pydantic_core import to_json

from worker import __version__
from worker.broker.connection import BrokerRefused, BrokerUnavailable, ChannelLost, DeliveryFailed
from worker.broker.session import Session
from worker.broker.suspects import Suspects
from worker.broker.topology import Topology, TopologyMismatch
from worker.broker.topology_watch import TopologyWatch
from worker.contract.asyncapi import asyncapi
from worker.contract.errors import DeploymentMissing, Fault
from worker.events.emitter import Emitter
from worker.line.create import DatabaseAway
from worker.line.line import Pipeline
from worker.line.patience import PATIENCE, Patience
from worker.observability import metrics
from worker.observability.http import side_port
from worker.observability.redaction import redact
from worker.observability.traces import open_traces
from worker.settings import Settings
from worker.states.teller import Teller
from worker.store import Store
from worker.tasks.backoff import Backoff, pause
from worker.tasks.beside import Beside
from worker.tasks.collector import relieve_collector

T = TypeVar("T")

log = structlog.get_logger(__name__)

# Longest pause after a lost session, in seconds (at least half of it). It keeps a fleet from
# returning at the same moment, and a worker that loses each session at once from spinning. A guess.
REOPEN_SECONDS = 0.2
# The pauses grow after this many sessions in a row that served nothing and ended within these
# seconds. A delivery that makes the broker end sessions is a dead letter after 21 of them, by the
# queue's delivery limit.
MAX_IN_VAIN = 30
IN_VAIN_SECONDS = 10.0
# Seconds between two looks for a missing deployment. A look takes a millisecond.
DEPLOYMENT_SECONDS = 1.0
# Longest wait for a cancelled pipeline at the stop, in seconds.
LEAVE_SECONDS = 2.0


async def serve(settings: Settings, patience: Patience = PATIENCE) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight and return.

    Args:
        patience: of the line, for tests that can't wait as long as a worker.

    Raises:
        StoreError: the database answers but can't be used (login, name, schema).
        BrokerRefused: the broker refuses login, virtual host or permission at the start.
        TopologyMismatch: a queue or exchange has other properties at the broker.
        PortTaken: the configured HTTP port is taken.
    """
    relieve_collector()
    service = Service(settings, patience)
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, service.stop, each.name)
    try:
        await service.run()
    finally:
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)


class Service:
    """One run of a worker, from the first connection to the last acknowledgement."""

    def __init__(self, settings: Settings, patience: Patience = PATIENCE) -> None:
        self._settings = settings
        self._patience = patience
        self._topology = Topology.of(settings.queue_names, metrics.declared_again)
        self._watch = TopologyWatch(settings.amqp_url, settings.management_url, self._topology)
        self._stopping = asyncio.Event()
        self._store: Store | None = None
        self._traces = open_traces(settings.queue)
        self._served = False
        # Messages whose answers may have ended a session, and how to open the next one.
        self._suspects = Suspects()
        self._careful = False
        self._in_vain = 0

    def stop(self, reason: str = "asked to") -> None:
        """Stop consuming, and finish the requests in flight within the shutdown timeout."""
        if not self._stopping.is_set():
            log.info("stopping", reason=reason, shutdown_timeout=self._settings.shutdown_timeout)
        self._stopping.set()

    async def run(self) -> None:
        """Run until :meth:`stop`. Raises the errors of :func:`serve`."""
        settings = self._settings
        metrics.settings(settings.shared)
        demanded = "http_port" in settings.model_fields_set
        port = side_port(
            settings.http_host,
            settings.http_port,
            self._ping,
            asyncapi=to_json(asyncapi(settings.queue_names, settings.plain_messages)),
            demanded=demanded,
        )
        async with port:
            self._store = await self._open_store()
            if self._store is None:
                return
            beside = list(self._beside(self._store))
            for each in beside:
                each.start()
            try:
                await self._stay_at_broker(self._store)
            finally:
                for each in (self._watch, *beside):
                    await each.stop()
                await self._store.close()
                await asyncio.to_thread(self._traces.close)
                log.info("stopped")

    def _beside(self, store: Store) -> Iterator[Beside]:
        """The tasks that send events and publish states, if the settings ask for them."""
        if self._settings.prefect_api_url is not None:
            yield Emitter(self._settings, self._topology)
        if self._settings.states != "off":
            yield Teller(self._settings, self._topology, store)

    async def _ping(self) -> None:
        if self._store is not None:
            await self._store.ping()
            await self._has_deployment(self._store)

    async def _open_store(self) -> Store | None:
        settings = self._settings
        return await self._from_database(
            lambda: Store.open(
                settings.database_url,
                migrate=settings.migrate,
                kind=settings.database_kind,
                allowed=settings.allowed,
            )
        )

    async def _stay_at_broker(self, store: Store) -> None:
        """Open one session after the other. Serve each until it is lost or the worker stops."""
        backoff = Backoff()
        while not self._stopping.is_set():
            await self._wait_for_deployment(store, backoff)
            session = await self._open_session(backoff)
            if session is None:
                continue
            if self._served:
                metrics.reconnects.inc()
            self._traces.connected(session.server)
            pipeline = Pipeline(session, store, self._settings, self._traces, self._patience)
            reason, opened = "stopping", monotonic()
            try:
                await self._serve(session, store, pipeline)
            except* ChannelLost as lost:
                reason = str(lost.exceptions[0])
                log.warning("session_lost", error=reason)
            except* DatabaseAway as away:
                reason = f"no session while the database is away: {away.exceptions[0]}"
                log.warning("deliveries_handed_back", error=str(away.exceptions[0]))
            except* DeploymentMissing as missing:
                reason = f"no session while the deployment is missing: {missing.exceptions[0]}"
                log.warning("deliveries_handed_back", error=str(missing.exceptions[0]))
            finally:
                self._served = True
                metrics.broker_away(reason)
                self._careful = session.ended_over_delivery or (self._careful and not session.consumer.calm)
                stayed = monotonic() - opened
                in_vain = not session.consumer.answered and stayed < IN_VAIN_SECONDS
                self._in_vain = self._in_vain + 1 if in_vain else 0
                await session.close()
                self._traces.lost()
            backoff = self._before_reopening(backoff)
            await backoff.sleep(self._stopping)
            # A standby or a full disk accepts no writes. Requests that are taken and handed back
            # meanwhile would count as delivered.
            await self._from_database(store.writes)

    async def _has_deployment(self, store: Store) -> bool:
        """Whether the deployment of plain messages is there, if there is to be one."""
        name = self._settings.deployment
        if name is None:
            return True
        there = await store.has_deployment(name)
        metrics.deployment_missing(None if there else str(DeploymentMissing(name)))
        return there

    async def _wait_for_deployment(self, store: Store, backoff: Backoff) -> None:
        """Wait until the deployment of plain messages is there, or the worker stops.

        There is no consumer meanwhile: deliveries that are held and handed back would count against
        their delivery limit. The queue is declared, so that nothing published is lost.
        """
        if self._settings.deployment is None:
            return
        declared = told = False
        while await self._from_database(lambda: self._has_deployment(store)) is False:
            if not told:
                log.warning("deployment_missing", error=metrics.readiness.deployment)
                told = True
            if not declared and (session := await self._open_session(backoff, consume=False)):
                await session.close()
                self._watch.start()
                declared = True
            await pause(DEPLOYMENT_SECONDS, self._stopping)
        if told and not self._stopping.is_set():
            log.info("deployment_there", deployment=self._settings.deployment)

    async def _open_session(self, backoff: Backoff, *, consume: bool = True) -> Session | None:
        """A session. None after a pause if it can't be opened, or if the worker stops.

        Args:
            consume: try to consume and to publish. Otherwise the topology is declared only.
        """
        try_out: Literal["publish first", "consume first"] | None = None
        if consume:
            try_out = "publish first" if self._served else "consume first"
        try:
            return await self._unless_stopping(
                Session.open(
                    self._settings.amqp_url,
                    self._topology,
                    name="flow-run-worker",
                    fast_path=self._settings.fast_path,
                    prefetch_size=self._settings.prefetch_size,
                    max_message_size=self._settings.max_message_size,
                    try_out=try_out,
                    careful=self._careful,
                    suspects=self._suspects,
                )
            )
        except (BrokerUnavailable, BrokerRefused, TopologyMismatch) as error:
            if not isinstance(error, BrokerUnavailable) and not self._served:
                raise
            # It has let us in before: a limit, a right or a password may be wrong only now.
            metrics.broker_away(str(error))
            log.warning("broker_away", error=str(error), tries=backoff.tries + 1)
            if isinstance(error, DeliveryFailed):
                self._careful = True
                self._in_vain += 1
                backoff = self._before_reopening(backoff)
            await backoff.sleep(self._stopping)
            return None

    def _before_reopening(self, backoff: Backoff) -> Backoff:
        """The pause before the next session. It grows once too many have served nothing."""
        return Backoff(first=REOPEN_SECONDS) if self._in_vain <= MAX_IN_VAIN else backoff

    async def _serve(self, session: Session, store: Store, pipeline: Pipeline) -> None:
        """Serve one session until it is lost or the worker stops."""
        metrics.broker_here(
            lambda: session.consumer.in_flight.bytes, lambda: session.consumer.in_flight.paused
        )
        publishing = session.publisher.frames
        publishing.on_blocked = _note_blocked
        if publishing.blocked is not None:
            _note_blocked(publishing.blocked)
        self._watch.start()  # the session has declared the queues
        log.info(
            "serving",
            queue=self._topology.queue,
            broker=redact(self._settings.amqp_url),
            database=store.description,
            kind=store.kind,
            prefetch=self._settings.prefetch,
            batch_max=self._settings.batch_max,
            version=__version__,
        )
        serving = asyncio.create_task(pipeline.run())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((serving, stopping, session.lost), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done() and not session.lost.done():
                try:
                    async with asyncio.timeout(self._settings.shutdown_timeout):
                        await session.consumer.stop()
                        await asyncio.wait((serving, session.lost), return_when=asyncio.FIRST_COMPLETED)
                except TimeoutError:
                    log.warning("shutdown_timeout", handed_back="requests in flight")
            if session.lost.done():
                lost = session.lost.result()
                # After the start, a refusal may be temporary, such as an expired token.
                may_change = self._served or session.consumer.answered or self._settings.amqp_password_file
                if lost.refused and not may_change:
                    raise BrokerRefused(f"The broker refuses what the worker needs: {lost}")
                raise lost
            if serving.done():
                serving.result()
        finally:
            serving.cancel()
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            # A statement at a silent database is cancelled only after its own timeout. At the stop,
            # closing the store ends it.
            done, _ = await asyncio.wait(
                (serving,), timeout=LEAVE_SECONDS if self._stopping.is_set() else None
            )
            stopping.cancel()
            if done and not serving.cancelled():
                serving.exception()

    async def _from_database(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """The database's answer. None if the worker stops before it gives one."""
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                answer = await self._unless_stopping(ask())
            except Fault as fault:
                metrics.database_away(str(fault))
                log.warning("database_away", error=str(fault), tries=backoff.tries + 1)
                await backoff.sleep(self._stopping)
            else:
                metrics.database_here()
                return answer
        return None

    async def _unless_stopping(self, opening: Coroutine[Any, Any, T]) -> T | None:
        """The opened object. None if the worker stops before."""
        task = asyncio.create_task(opening)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.wait((task,), timeout=self._settings.shutdown_timeout)
            return None
        finally:
            stopping.cancel()


def _note_blocked(reason: str | None) -> None:
    metrics.broker_blocks(reason)
    if reason is None:
        log.info("broker_unblocked")
    else:
        log.warning("broker_blocked", reason=reason, waiting="replies")
