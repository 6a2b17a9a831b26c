"""The worker that one would write first, to compare with: an aio-pika callback, one commit a message, prefetch 20.

``python -m tests.benchmarks.first_worker AMQP_URL DATABASE_URL QUEUE``. It uses the same contract and the same tables, by
SQLAlchemy with its usual drivers, and gives the same reply; it has none of the worker's guarantees but the unique key.
"""

import asyncio
import sqlite3
import sys
from datetime import UTC, datetime
from typing import Any

import aio_pika
import asyncpg

from worker.contract.decode import decode
from worker.contract.message import Message
from worker.contract.record import encode_record
from worker.creation import new_run
from worker.store.rows import RUN_COLUMNS, STATE_COLUMNS, RowCodec


class PostgreSQLStore:
    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._codec = RowCodec("postgresql")

    async def create(self, run: Any) -> None:
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_statement("flow_run", RUN_COLUMNS), *self._codec.run_values(run))
            await connection.execute(_statement("flow_run_state", STATE_COLUMNS), *self._codec.state_values(run.state))


class SQLiteStore:
    """The usual settings for one that wants durable commits: WAL, synchronous FULL, a thread for each statement's work."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, timeout=10, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._codec = RowCodec("sqlite")
        self._turn = asyncio.Lock()

    async def create(self, run: Any) -> None:
        async with self._turn:
            await asyncio.to_thread(self._create, run)

    def _create(self, run: Any) -> None:
        for table, columns, values in (
            ("flow_run", RUN_COLUMNS, self._codec.run_values(run)),
            ("flow_run_state", STATE_COLUMNS, self._codec.state_values(run.state)),
        ):
            marks = ", ".join("?" * len(columns))
            self._connection.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT DO NOTHING", values
            )
        self._connection.commit()


def _statement(table: str, columns: tuple[str, ...]) -> str:
    casts = {
        "parameters",
        "context",
        "empirical_policy",
        "tags",
        "labels",
        "created_by",
        "job_variables",
        "state_details",
        "data",
    }
    marks = ", ".join(
        f"${number}" + ("::text::jsonb" if name in casts else "::text::state_type" if name in ("state_type", "type") else "")
        for number, name in enumerate(columns, start=1)
    )
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT DO NOTHING"


async def serve(amqp_url: str, database_url: str, queue_name: str) -> None:
    store: PostgreSQLStore | SQLiteStore
    if database_url.startswith("sqlite"):
        store = SQLiteStore(database_url.partition(":///")[2])
    else:
        store = PostgreSQLStore(await asyncpg.create_pool(database_url.replace("+asyncpg", ""), min_size=1, max_size=10))
    connection = await aio_pika.connect(amqp_url)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=20)
    queue = await channel.get_queue(queue_name)

    async def on_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with message.process():
            request = decode(Message(message.body, {}), max_body_bytes=1_000_000)
            run = new_run(request, datetime.now(UTC)).run
            await store.create(run)
            reply = aio_pika.Message(
                encode_record(run, datetime.now(UTC)),
                content_type="application/json",
                correlation_id=message.correlation_id,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                headers={"status": 201},
            )
            await channel.default_exchange.publish(reply, routing_key=message.reply_to or "", mandatory=True)

    await queue.consume(on_message)
    await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
