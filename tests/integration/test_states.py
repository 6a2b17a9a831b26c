"""States that are told: each once at rest, and none is missing however it was committed."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import aio_pika
import asyncpg
import pytest
from yarl import URL

from tests.support.pgbouncer import PgBouncer
from tests.support.postgresql import PostgreSQL
from tests.support.states import Follower, Writer, telling
from worker.contract.states import told_types
from worker.observability import metrics
from worker.settings import Settings
from worker.states.cursor import Cursor
from worker.states.patience import PATIENCE, Patience
from worker.store import Store
from worker.store.engine import driver, open_database, parse_url
from worker.store.states import StatesReader

FollowerOf = Callable[[Settings], Follower]

# States are settled after two seconds, and transactions forgotten after three.
HASTY = Patience(again=(0.5, 1.0, 1.5), late=2.0, forgotten=3.0, mark=0.1, first=1.0, cursor=0.2, renewal=1.0)


@pytest.fixture
async def settings(amqp_url: str, queue: str, database_url: str) -> Settings:
    await (await Store.open(database_url, migrate=True)).close()
    return Settings(
        amqp_url=amqp_url, queue=queue, database_url=database_url, states="all", states_interval=0.05
    )


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[Writer]:
    async with Writer(settings.database_url) as writer:
        yield writer


@pytest.fixture
async def follower(settings: Settings) -> AsyncIterator[Follower]:
    async with Follower(settings.amqp_url, settings.queue) as follower:
        yield follower


@pytest.fixture
def follower_of() -> FollowerOf:
    return lambda settings: Follower(settings.amqp_url, settings.queue)


async def begun(writer: Writer, follower: Follower, type: str = "RUNNING") -> None:
    """Wait until states are told."""
    async with asyncio.timeout(120):
        while not follower.told:
            await writer.states(1, type)
            await asyncio.sleep(0.2)
    await follower.has(writer.written[-1:])
    follower.told.clear()
    follower.messages.clear()
    writer.written.clear()


async def test_each_state_is_told_once(settings: Settings, writer: Writer, follower: Follower) -> None:
    async with telling(settings, HASTY):
        await begun(writer, follower)
        for count in (1, 1, 300, 1):
            await writer.states(count)
        await follower.has(writer.written)
        await asyncio.sleep(5)  # they are read again at each age
        await writer.states(1)
        await follower.has(writer.written)
    assert follower.told.keys() == set(writer.written)
    assert follower.doubles == 0


async def test_a_state_has_the_record_of_its_run(
    settings: Settings, writer: Writer, follower: Follower
) -> None:
    async with telling(settings, HASTY):
        await begun(writer, follower)
        run_id = await writer.run()
        first = await writer.states(1, "RUNNING", run_id=run_id)
        second = await writer.states(1, "COMPLETED", run_id=run_id)
        await follower.has(first + second)
    for message, state_id, type_ in zip(
        follower.messages, first + second, ("RUNNING", "COMPLETED"), strict=True
    ):
        body = json.loads(message.body)
        assert message.routing_key == f"{type_}.{body['flow_id']}.-.{run_id}"
        assert (body["id"], body["state_id"], body["state_type"]) == (str(run_id), str(state_id), type_)
        assert body["state"]["id"] == message.message_id == str(state_id)
        assert (message.type, message.content_type) == ("flow_run_state", "application/json")
        assert message.timestamp is not None


async def test_final_tells_the_ends_of_runs_alone(
    settings: Settings, writer: Writer, follower: Follower
) -> None:
    ends = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
    others = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")
    async with telling(settings.model_copy(update={"states": "final"}), HASTY):
        await begun(writer, follower, "FAILED")
        told = [await writer.states(1, each) for each in (*others, *ends)][len(others) :]
        await follower.has([each for ids in told for each in ids])
    assert follower.told.total() == len(ends)


async def test_a_transaction_that_commits_late_hides_no_state(
    settings: Settings, writer: Writer, follower: Follower
) -> None:
    """One that states wait for, and one that is open for too long to wait."""
    async with telling(settings, HASTY):
        await begun(writer, follower)
        if writer.sqlite:
            await late_in_a_file(writer)
        else:
            await late_on_a_server(writer)
        await follower.has(writer.written)
        await asyncio.sleep(3)
    assert follower.doubles == 0
    assert follower.told.keys() == set(writer.written)


async def late_on_a_server(writer: Writer) -> None:
    for seconds in (2.7, 6.0):
        connection = await writer.another()
        async with connection.transaction():
            late = await writer.states(20, connection=connection)
            await connection.execute("SAVEPOINT nested")
            late += await writer.states(20, connection=connection)
            for _ in range(30):
                await writer.states(10)
                await asyncio.sleep(seconds / 30)
        writer.written += late
        await connection.close()
        await writer.states()


async def late_in_a_file(writer: Writer) -> None:
    """A writer that gets the file's lock late, and keeps it for long."""
    run_id = await writer.run()
    with closing(sqlite3.connect(writer.file, isolation_level=None)) as file:
        late = [writer.row(run_id) for _ in range(5)]
        for _ in range(10):
            await writer.states(10)
            await asyncio.sleep(0.1)
        file.execute("BEGIN IMMEDIATE")
        file.executemany(writer.insert, late)
        await asyncio.sleep(4)
        file.execute("COMMIT")
    writer.written += [UUID(row[0]) for row in late]
    await writer.states()


@pytest.mark.parametrize("ahead", [-5.0, pytest.param(5.0, marks=pytest.mark.long)])
async def test_clocks_may_differ(
    settings: Settings, writer: Writer, follower: Follower, ahead: float
) -> None:
    async with telling(settings, replace(PATIENCE, first=1.0)):
        await begun(writer, follower)
        await asyncio.sleep(5.5)  # since the cursor's time
        for _ in range(20):
            await writer.states(50, ahead=ahead)
            await writer.states(50)
        await follower.has(writer.written)
        await asyncio.sleep(10)
    assert follower.doubles == 0


async def test_a_prepared_transaction_holds_back_nobody(
    amqp_url: str, queue: str, follower_of: FollowerOf
) -> None:
    """Even in another database of the server, and for as long as it takes."""
    with PostgreSQL() as server:
        server.stop()
        server.start("-c", "max_prepared_transactions=5")
        settings = Settings(
            amqp_url=amqp_url, queue=queue, database_url=server.create_database(), states="all"
        )
        await (await Store.open(settings.database_url, migrate=True)).close()
        async with (
            Writer(settings.database_url) as writer,
            follower_of(settings) as follower,
            telling(settings, HASTY),
        ):
            await begun(writer, follower)
            other = await asyncpg.connect(server.create_database().replace("+asyncpg", ""))
            await other.execute("CREATE TABLE t (); BEGIN; INSERT INTO t DEFAULT VALUES")
            await other.execute("PREPARE TRANSACTION 'forgotten elsewhere'")
            await other.close()
            await writer.execute("BEGIN")
            late = await writer.states(3, connection=writer.connection)
            await writer.execute("PREPARE TRANSACTION 'forgotten'")
            for _ in range(40):
                await writer.states(5)
                await asyncio.sleep(0.2)
            assert value(metrics.states_open) > 3
            # One that is late, but not forgotten, is told meanwhile.
            connection = await writer.another()
            async with connection.transaction():
                slow = await writer.states(3, connection=connection)
                await asyncio.sleep(2.5)
            await connection.close()
            await follower.has(writer.written + slow)
            assert not follower.told.keys() & set(late)
            await writer.execute("COMMIT PREPARED 'forgotten'")
            await follower.has(late)
            assert follower.doubles == 0


async def test_the_next_teller_goes_on_where_the_last_one_stopped(
    settings: Settings, writer: Writer, follower: Follower
) -> None:
    async with telling(settings, HASTY):
        await begun(writer, follower)
        async with telling(settings, HASTY):
            for _ in range(20):
                await writer.states(5)
                await asyncio.sleep(0.05)
            await follower.has(writer.written)
    # While none is there, and longer than states are looked back for.
    await writer.states(30)
    await asyncio.sleep(3)
    begins = value(metrics.states_begun)
    async with telling(settings, HASTY):
        await follower.has(writer.written)
        await asyncio.sleep(3)
    assert follower.doubles == 0
    assert value(metrics.states_begun) == begins
    assert await cursors(settings) == 1


async def test_a_cursor_that_no_worker_wrote_is_set_aside(
    settings: Settings, writer: Writer, follower: Follower, other_user: str
) -> None:
    async with telling(settings, HASTY):
        await begun(writer, follower)
    await writer.states(5)
    far, now = datetime.max.replace(tzinfo=UTC), datetime.now(UTC) + timedelta(seconds=9)
    forged = Cursor(told=now, reached=now)
    for url, body, user_id in (
        (other_user, forged.encode(), URL(other_user).user),
        (other_user, forged.encode(), None),
        (settings.amqp_url, b"no JSON", "guest"),
        (settings.amqp_url, b'{"version": 2}', "guest"),
        (settings.amqp_url, Cursor(told=far, reached=far).encode(), "guest"),
        (settings.amqp_url, Cursor(told=now, reached=now - timedelta(days=1)).encode(), "guest"),
    ):
        await put(url, settings.queue_names.cursor_queue, body, user_id)
    aside = value(metrics.cursors_set_aside)
    async with telling(settings, HASTY):
        await follower.has(writer.written)
        assert value(metrics.cursors_set_aside) == aside + 6
        await put(other_user, settings.queue_names.cursor_queue, forged.encode(), None)
        async with asyncio.timeout(60):
            while value(metrics.cursors_set_aside) < aside + 7:
                await asyncio.sleep(0.05)
        await writer.states(5)
        await follower.has(writer.written)
    assert await cursors(settings) == 1


async def test_the_furthest_cursor_counts(settings: Settings, writer: Writer, follower: Follower) -> None:
    await writer.states(5)
    async with telling(settings, HASTY):
        await begun(writer, follower)
        await writer.states(5)
        await follower.has(writer.written)
    begin = datetime.fromtimestamp(0, UTC)
    for cursor in (Cursor(told=begin, reached=begin), Cursor(told=begin, reached=begin, began=True)):
        await put(settings.amqp_url, settings.queue_names.cursor_queue, cursor.encode(), "guest")
    async with telling(settings, HASTY):
        await writer.states(5)
        await follower.has(writer.written)
        await asyncio.sleep(1)
    assert follower.doubles == 0
    assert await cursors(settings) == 1


async def test_a_cursor_that_vanished_is_put_back(
    settings: Settings, writer: Writer, follower: Follower
) -> None:
    async with telling(settings, HASTY):
        await begun(writer, follower)
        await follower.channel.queue_delete(settings.queue_names.cursor_queue)
        begins = value(metrics.states_begun)
        async with asyncio.timeout(120):
            while value(metrics.states_begun) == begins:
                await asyncio.sleep(0.05)
        await writer.states(5)
        await follower.has(writer.written)


async def test_two_fleets_tell_one_database(
    settings: Settings, writer: Writer, follower: Follower, follower_of: FollowerOf
) -> None:
    others = settings.model_copy(update={"queue": f"other-{settings.queue}"})
    async with follower_of(others) as other, telling(settings, HASTY), telling(others, HASTY):
        await begun(writer, follower)
        await begun(writer, other)
        for _ in range(10):
            await writer.states(3)
        await follower.has(writer.written)
        await other.has(writer.written)
    assert (follower.doubles, other.doubles) == (0, 0)


async def test_what_cannot_be_shown_is_passed_over_and_harms_no_other(
    settings: Settings, writer: Writer, follower: Follower
) -> None:
    async with telling(settings, HASTY):
        await begun(writer, follower)
        odd = value(metrics.passed_over, reason="unreadable")
        run_id = await writer.run()
        written = await writer.odd_states(run_id)
        await writer.states(3)
        await follower.has(writer.written)
        assert value(metrics.passed_over, reason="unreadable") == odd + written
        await writer.execute(f"DELETE FROM flow_run WHERE id = '{run_id}'")
        await writer.states(3)
        await follower.has(writer.written)
    assert follower.told.keys() == set(writer.written)


async def test_a_queue_that_refuses_states_holds_back_nobody(
    settings: Settings, writer: Writer, follower: Follower
) -> None:
    full: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    async with telling(settings, replace(HASTY, refused=1.0)):
        await begun(writer, follower)
        refused = value(metrics.passed_over, reason="refused")
        queue = await follower.channel.declare_queue(exclusive=True, arguments=full)
        await queue.bind(settings.queue_names.states_exchange, "#")
        for _ in range(6):
            await writer.states(5)
            await follower.has(writer.written)
        async with asyncio.timeout(60):
            while value(metrics.passed_over, reason="refused") < refused + 20:
                await asyncio.sleep(0.05)
        await queue.delete(if_empty=False)
        await writer.states(5)
        await follower.has(writer.written)


async def test_runs_are_read_within_a_bound(settings: Settings, writer: Writer, follower: Follower) -> None:
    """Large runs are told, one after the other, and with many small ones."""
    async with telling(settings, HASTY):
        await begun(writer, follower)
        run_id = await writer.run()
        large = json.dumps({"x": "y" * 1_500_000})
        await writer.execute(f"UPDATE flow_run SET parameters = '{large}' WHERE id = '{run_id}'")
        await writer.states(8, run_id=run_id)
        await writer.states(1000)
        await follower.has(writer.written)
    assert sum(len(message.body) > 1_500_000 for message in follower.messages) == 8


def value(metric: Any, **labels: str) -> float:
    """A metric's value."""
    metric = metric.labels(**labels) if labels else metric
    return float(metric.collect()[0].samples[0].value)


async def put(url: str, queue: str, body: bytes, user_id: str | None) -> None:
    """Publish a message as a user."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(aio_pika.Message(body, user_id=user_id), queue, mandatory=True)


async def cursors(settings: Settings) -> int:
    """The cursors that wait in their queue, when no worker is there."""
    async with await aio_pika.connect(settings.amqp_url) as connection, asyncio.timeout(60):
        channel = await connection.channel()
        while True:
            queue = await channel.get_queue(settings.queue_names.cursor_queue)
            found = queue.declaration_result
            if not found.consumer_count and found.message_count:
                return found.message_count
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("states", ["final", "all"])
async def test_a_page_is_read_in_the_order_of_the_index(
    settings: Settings, writer: Writer, states: Any
) -> None:
    """Not by its whole range, even if nothing is known of the table."""
    await writer.states(2000)
    database = await open_database(parse_url(settings.database_url))
    reader = StatesReader(database, prefect=False, lacks=(), types=told_types(states))
    try:
        now = (await reader.look()).now
        after, before = reader.key(now - timedelta(hours=1)), reader.key(now + timedelta(hours=1))
        page = await reader.page(after, before, 10)
        assert (len(page.states), page.full) == (10, True)
        async with database.connect() as connection:
            server = driver(connection)
            given = (*after, before[0], 10)
            if writer.sqlite:
                plan = await server.execute_fetchall(f"EXPLAIN QUERY PLAN {reader.statement}", given)
                steps = [row[3] for row in plan]
                assert "USING INDEX ix_flow_run_state__updated (updated>? AND updated<?)" in steps[0]
                assert steps[1:] == ["USE TEMP B-TREE FOR RIGHT PART OF ORDER BY"]
                return
            await server.execute("SET plan_cache_mode = force_generic_plan")
            await server.execute(
                f"PREPARE page(timestamptz, uuid, timestamptz, bigint) AS {reader.statement}"
            )
            values = ", ".join(f"'{each}'" for each in given)
            plan = "\n".join(row[0] for row in await server.fetch(f"EXPLAIN EXECUTE page({values})"))
    finally:
        await database.close()
    inner = plan.partition("Limit")[2]
    assert "Incremental Sort" in inner
    assert "Index Scan using ix_flow_run_state__updated" in inner


async def test_states_are_told_behind_a_pooler(
    postgresql: PostgreSQL, amqp_url: str, queue: str, postgresql_url: str, follower_of: FollowerOf
) -> None:
    with PgBouncer(postgresql.port, pool_size=4) as pooler:
        url = postgresql_url.replace(f":{postgresql.port}/", f":{pooler.port}/")
        settings = Settings(amqp_url=amqp_url, queue=queue, database_url=url, states="all")
        await (await Store.open(postgresql_url, migrate=True)).close()
        async with (
            Writer(postgresql_url) as writer,
            follower_of(settings) as follower,
            telling(settings, HASTY),
        ):
            await begun(writer, follower)
            await late_on_a_server(writer)
            await follower.has(writer.written)
    assert follower.doubles == 0
