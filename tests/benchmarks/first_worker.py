"""A simple first worker, for comparison: an aio-pika callback, one commit a message, prefetch 20.

``python -m tests.benchmarks.first_worker AMQP_URL DATABASE_URL QUEUE``. It has the same contract,
tables and reply, and uses SQLAlchemy with its usual drivers. The only
guarantee of the worker that it has is the unique key.
"""

import asyncio
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import aio_pika
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from worker.contract.decode import decode
from worker.contract.flow_run import FlowRun
from worker.contract.message import Message
from worker.contract.record import encode_record
from worker.runs.creation import new_run
from worker.store.tables import flow_run, flow_run_state


def open_engine(url: str) -> AsyncEngine:
    engine = create_async_engine(url)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine.sync_engine, "connect")
        def durable(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA busy_timeout = 10000")

    return engine


async def create(engine: AsyncEngine, run: FlowRun) -> None:
    insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    async with engine.begin() as connection:
        values = row(engine, flow_run, run)
        inserted = await connection.execute(
            insert(flow_run).values(values).on_conflict_do_nothing().returning(flow_run.c.id)
        )
        if inserted.first() is not None and run.state is not None:
            await connection.execute(sa.insert(flow_run_state).values(row(engine, flow_run_state, run.state)))


def row(engine: AsyncEngine, table: sa.Table, record: Any) -> dict[str, Any]:
    values = {name: value for name, value in asdict(record).items() if name in table.columns}
    if engine.dialect.name == "sqlite":
        for name, value in values.items():
            if isinstance(value, UUID):
                values[name] = str(value)
            elif isinstance(value, datetime):
                values[name] = value.astimezone(UTC).replace(tzinfo=None)
    return values


async def serve(amqp_url: str, database_url: str, queue_name: str) -> None:
    engine = open_engine(database_url)
    connection = await aio_pika.connect(amqp_url)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=20)
    queue = await channel.get_queue(queue_name)

    async def on_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with message.process():
            request = decode(Message(message.body, {}), max_body_bytes=1_000_000)
            run = new_run(request, datetime.now(UTC)).run
            await create(engine, run)
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
