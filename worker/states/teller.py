"""The teller: publishes the states of runs while it has the cursor, and waits whenever the database
or the broker is down. It neither serves nor disturbs requests.

Each worker of a queue has one. The broker hands the cursor to one of them at a time.
"""

import asyncio
from datetime import datetime
from time import monotonic

import structlog

from worker.broker.publisher import publisher_on
from worker.broker.stay import HandedBack, Place, Stay
from worker.broker.topology import Topology
from worker.contract.errors import Fault
from worker.contract.states import told_types
from worker.observability import metrics
from worker.settings import Settings
from worker.states.cursor import Cursor
from worker.states.keeper import PREFETCH, Keeper
from worker.states.patience import PATIENCE, Patience
from worker.states.publishing import Publishing
from worker.states.tail import Tail
from worker.store import Store
from worker.store.engine import open_database
from worker.store.errors import StoreError
from worker.store.states import StatesReader
from worker.tasks.backoff import Backoff, pause
from worker.tasks.beside import Beside

log = structlog.get_logger(__name__)


class Teller(Beside):
    """Publishes states until it is stopped. Then it puts the cursor back.

    Args:
        settings: the broker, and which states.
        topology: the queues, with the cursor's.
        store: the worker's. The teller has a connection of its own to its database.
        patience: with the database and the broker.
    """

    def __init__(
        self, settings: Settings, topology: Topology, store: Store, patience: Patience = PATIENCE
    ) -> None:
        super().__init__(patience.stop)
        self._settings = settings
        self._topology = topology
        self._store = store
        self._patience = patience

    async def _run(self) -> None:
        metrics.tells_states(self._settings.states, None)
        place = Place(
            self._settings.amqp_url,
            self._topology,
            self._topology.cursor_queue,
            name="flow-run-worker states",
            prefetch=PREFETCH,
            bulk=self._settings.fast_path,
            stopping=self._stopping,
            on_lost=metrics.states_held,
        )
        reader = await self._open()
        if reader is None:
            return
        try:
            await place.keep(lambda stay: self._serve(stay, reader))
        finally:
            await reader.database.close()

    async def _open(self) -> StatesReader | None:
        """Connect to the database. None if the worker stops before."""
        statements, url = self._store.statements, self._store.database.url
        types = told_types(self._settings.states)
        away = _Away(self._patience, self._stopping)
        while not self._stopping.is_set():
            try:
                database = await open_database(url)
            except (Fault, StoreError) as error:
                await away.wait(error)
            else:
                return StatesReader(database, prefect=statements.prefect, lacks=statements.lacks, types=types)
        return None

    async def _serve(self, stay: Stay, reader: StatesReader) -> None:
        """Wait for the cursor, then publish states until the stay ends or the worker stops."""
        keeper = Keeper(stay, self._topology.cursor_queue, self._settings.fleet_logins, self._patience)
        away = _Away(self._patience, self._stopping)
        metrics.states_held(None)

        async def now() -> datetime | None:
            while not self._stopping.is_set():
                try:
                    return (await reader.look()).now
                except Fault as fault:
                    await away.wait(fault)
            return None

        if (cursor := await keeper.take(now)) is not None:
            try:
                await self._tell(stay, reader, keeper, cursor, away)
            finally:
                metrics.tells_states(self._settings.states, None)

    async def _tell(
        self, stay: Stay, reader: StatesReader, keeper: Keeper, cursor: Cursor, away: "_Away"
    ) -> None:
        publishing = Publishing(
            reader,
            stay.publisher,
            lambda: publisher_on(stay.connection),
            max_message_size=self._settings.max_message_size,
            exchange=self._topology.states_exchange,
            pace=self._store.pace,
            refused_seconds=self._patience.refused,
        )
        tail = Tail(
            reader,
            sqlite=reader.database.sqlite,
            tell=publishing.tell,
            cursor=cursor,
            patience=self._patience,
        )
        log.info("telling_states", since=cursor.told, exchange=self._topology.states_exchange)
        metrics.tells_states(self._settings.states, lambda: tail.behind)
        # The first cursor follows at once: a worker that is killed soon must not be in vain.
        put_at, told, recalled = -self._patience.renewal, 0, False
        while not (self._stopping.is_set() or stay.messages_are_lost):
            await keeper.sort()
            try:
                if not recalled:
                    await tail.recall()
                    recalled = True
                more = await tail.step()
            except Fault as fault:
                await away.wait(fault)
                continue
            away.over()
            metrics.states_wait_for_transactions(tail.settled.forgotten.values())
            age = monotonic() - put_at
            if age > self._patience.renewal or (publishing.told > told and age > self._patience.cursor):
                await keeper.put(tail.cursor())
                put_at, told = monotonic(), publishing.told
            if not more:
                await pause(self._settings.states_interval, self._stopping)
        if recalled and publishing.told > told and not stay.messages_are_lost:
            await keeper.put(tail.cursor())


class _Away:
    """Waits while the database is away."""

    def __init__(self, patience: Patience, stopping: asyncio.Event) -> None:
        self._hold = patience.hold
        self._stopping = stopping
        self._backoff = Backoff()
        self._since = 0.0

    async def wait(self, error: Exception) -> None:
        """Wait before the next try.

        Raises:
            HandedBack: it is away for too long.
        """
        self._since = self._since if self._backoff.tries else monotonic()
        if monotonic() - self._since > self._hold:
            raise HandedBack from error
        log.warning("states_wait_for_database", error=str(error), tries=self._backoff.tries + 1)
        metrics.states_held(str(error))
        await self._backoff.sleep(self._stopping)

    def over(self) -> None:
        """It has answered."""
        if self._backoff.tries:
            log.info("states_go_on")
        self._backoff.reset()
        metrics.states_held(None)
