"""Writes states into a database as a Prefect server does, and collects the published ones."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Self
from uuid import UUID, uuid4

import aio_pika
import asyncpg
from aio_pika.abc import AbstractIncomingMessage

from worker.broker.topology import Topology
from worker.settings import Settings
from worker.states.patience import Patience
from worker.states.teller import Teller
from worker.store import Store

RUN = """INSERT INTO flow_run (id, name, flow_id, run_count, total_run_time, auto_scheduled, parameters)
    VALUES ({}, 'a run', {}, 0, {}, {}, '{{}}')"""
STATE = """INSERT INTO flow_run_state (
        id, created, updated, flow_run_id, type, timestamp, name, state_details
    )
    VALUES ({}, {}, {}, {}, {}, {}, {}, '{{}}')"""
# Changes to states after which they can't be shown.
ODD_IN_FILE = ("timestamp = 'never'", "timestamp = '2024-02-31 00:00:00.000000'", "state_details = '[]'")
ODD_ON_SERVER = (
    "timestamp = '-infinity'",
    "timestamp = '0044-03-15 BC'",
    "timestamp = '10000-01-01'",
    "state_details = '[]'",
)


class Writer:
    """Writes runs and their states, each in a transaction of its own.

    Attributes:
        written: the ids of all committed states.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.written: list[UUID] = []
        self._numbers = count()

    @property
    def file(self) -> str:
        """The path of an SQLite file."""
        return self._url.partition(":///")[2]

    @property
    def insert(self) -> str:
        """The statement for the values of :meth:`row`."""
        return STATE.format(*("?" * 7 if self.sqlite else (f"${place}" for place in range(1, 8))))

    @property
    def sqlite(self) -> bool:
        return self._url.startswith("sqlite")

    async def __aenter__(self) -> Self:
        if self.sqlite:
            self._file = sqlite3.connect(self.file, timeout=60, isolation_level=None, check_same_thread=False)
        else:
            self.connection = await self.another()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.sqlite:
            self._file.close()
        else:
            await self.connection.close()

    async def another(self) -> "asyncpg.Connection[Any]":
        """Another connection to PostgreSQL."""
        return await asyncpg.connect(self._url.replace("+asyncpg", ""))

    async def run(self, flow_id: UUID | None = None, connection: Any = None) -> UUID:
        """Write a run without a state; returns its id."""
        run_id, flow_id = uuid4(), flow_id or uuid4()
        if self.sqlite:
            zero = "1970-01-01 00:00:00.000000"
            self._file.execute(RUN.format(*"?" * 4), (str(run_id), str(flow_id), zero, 0))
        else:
            statement = RUN.format("$1", "$2", "'0'", "false")
            await (connection or self.connection).execute(statement, run_id, flow_id)
        return run_id

    async def states(
        self,
        number: int = 1,
        type: str = "COMPLETED",
        *,
        run_id: UUID | None = None,
        ahead: float = 0.0,
        connection: Any = None,
    ) -> list[UUID]:
        """Write states of a run; returns their ids.

        Args:
            run_id: the run's (default: a new one).
            ahead: how far the clock of the writer is ahead, in seconds.
            connection: in whose transaction (default: committed at once).
        """
        run_id = run_id or await self.run(connection=connection)
        ids = [uuid4() for _ in range(number)]
        rows = [self.row(run_id, type, ahead, each) for each in ids]
        if self.sqlite:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany(self.insert, rows)
            self._file.execute("COMMIT")
        else:
            await (connection or self.connection).executemany(self.insert, rows)
        if connection is None:
            self.written += ids
        return ids

    def row(
        self, run_id: UUID, type: str = "COMPLETED", ahead: float = 0.0, id_: UUID | None = None
    ) -> tuple[Any, ...]:
        """A state's values, with the present time."""
        now = datetime.now(UTC) + timedelta(seconds=ahead)
        # No two states of a run have the same timestamp.
        timestamp = now + timedelta(microseconds=next(self._numbers))
        values = (id_ or uuid4(), now, now, run_id, type, timestamp, type.capitalize())
        return tuple(map(_text, values)) if self.sqlite else values

    async def odd_states(self, run_id: UUID) -> int:
        """Write states that can't be shown; returns how many."""
        changes = ODD_IN_FILE if self.sqlite else ODD_ON_SERVER
        await self.execute("BEGIN")
        for change in changes:
            row = self.row(run_id)
            if self.sqlite:
                self._file.execute(self.insert, row)
            else:
                await self.connection.execute(self.insert, *row)
            await self.execute(f"UPDATE flow_run_state SET {change} WHERE id = '{row[0]}'")
        await self.execute("COMMIT")
        return len(changes)

    async def execute(self, statement: str) -> None:
        """Run a statement, and commit."""
        if self.sqlite:
            self._file.execute(statement)
        else:
            await self.connection.execute(statement)


def _text(value: Any) -> Any:
    if isinstance(value, datetime):
        return f"{value.replace(tzinfo=None):%Y-%m-%d %H:%M:%S.%f}"
    return str(value)


class Follower:
    """Collects the states that are published.

    Attributes:
        told: how often each state was published, by its id.
        messages: all of them, in their order.
    """

    def __init__(self, amqp_url: str, queue: str, pattern: str = "#") -> None:
        self._url = amqp_url
        self._exchange = f"{queue}.states"
        self._pattern = pattern
        self.told: Counter[UUID] = Counter()
        self.messages: list[AbstractIncomingMessage] = []

    async def __aenter__(self) -> Self:
        self.connection = await aio_pika.connect(self._url)
        self.channel = await self.connection.channel()
        exchange = await self.channel.declare_exchange(self._exchange, "topic", durable=True)
        self.queue = await self.channel.declare_queue(exclusive=True)
        await self.queue.bind(exchange, self._pattern)
        await self.queue.consume(self._came, no_ack=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.close()

    async def _came(self, message: AbstractIncomingMessage) -> None:
        self.messages.append(message)
        self.told[UUID(message.message_id)] += 1

    async def has(self, ids: Sequence[UUID]) -> None:
        """Wait until these states were published."""
        async with asyncio.timeout(120):
            while set(ids) - self.told.keys():
                await asyncio.sleep(0.02)

    @property
    def doubles(self) -> int:
        """The number of messages that repeat a state."""
        return self.told.total() - len(self.told)


@asynccontextmanager
async def telling(settings: Settings, patience: Patience) -> AsyncIterator[Teller]:
    """Publish states meanwhile, in this process."""
    store = await Store.open(settings.database_url, migrate=True)
    teller = Teller(settings, Topology.of(settings.queue_names), store, patience)
    teller.start()
    try:
        yield teller
    finally:
        await teller.stop()
        await store.close()
