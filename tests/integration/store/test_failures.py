"""Faults of a running database: a failover, a silent network, slow statements, and a row that fails
for an unforeseen reason.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest

from tests.support.command import command
from tests.support.database import alter_system, execute, fetch_runs
from tests.support.postgresql import PostgreSQL
from tests.support.proxy import Proxy
from tests.support.requests import keyed
from worker.contract.errors import Fault, Refusal
from worker.runs.creation import NewRun
from worker.store import Created, Outcome, Store, Undecided, migrations
from worker.store.engine import driver

# Seconds in which a recovered database must be used again, and a silent one given up.
SECONDS = 15.0


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = await Store.open(url, migrate=True)
    yield store
    await store.close()


async def add_trigger(url: str, body: str) -> None:
    """Run PL/pgSQL for each inserted run."""
    await execute(
        url,
        f"CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN new; END $$",
        "CREATE TRIGGER look BEFORE INSERT ON flow_run FOR EACH ROW EXECUTE FUNCTION look()",
    )


async def create_at_last(store: Store, runs: Sequence[NewRun], seconds: float = SECONDS) -> list[Outcome]:
    """As the pipeline does: again and again, with pauses."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await store.create(runs)
            except Fault:
                await asyncio.sleep(0.2)


async def test_a_connection_whose_transaction_is_not_ended_serves_nobody(database_url: str) -> None:
    """As when its ROLLBACK was not answered in time."""
    store = await Store.open(database_url, migrate=True)
    async with store.database.connect() as connection:
        left = driver(connection)
        await left.execute("BEGIN")
    async with store.database.connect() as connection:
        assert driver(connection) is not left
    await store.create(keyed(["a"]))
    await store.close()


@pytest.mark.parametrize("whose", ["ROLE", "DATABASE", "SYSTEM"])
async def test_connections_that_stayed_read_only_after_a_failover_are_replaced(url: str, whose: str) -> None:
    async def alter(change: str) -> None:
        if whose == "SYSTEM":
            await alter_system(url, change)
        else:
            name = "postgres" if whose == "ROLE" else url.rpartition("/")[2]
            await execute(url, f"ALTER {whose} {name} {change}")

    store = await Store.open(url, migrate=True)
    await store.close()
    try:
        await alter("SET default_transaction_read_only = on")
        store = await Store.open(url, migrate=False)
        # All connections of the pool are read-only now, and new ones are as well.
        await asyncio.gather(store.ping(), store.ping())
        for _ in range(3):
            with pytest.raises(Fault, match="read-only"):
                await store.create(keyed(["a", "b"]))
            # A worker makes this check before it takes requests again.
            with pytest.raises(Fault, match="read-only"):
                await store.writes()
    finally:
        await alter("RESET default_transaction_read_only")
    outcomes = await create_at_last(store, keyed(["a", "b"]), 5.0)
    assert [type(outcome) for outcome in outcomes] == [Created, Created]
    await store.close()


async def test_a_batch_that_takes_too_long_is_stored_by_halves(url: str) -> None:
    await (await Store.open(url, migrate=True)).close()
    await add_trigger(url, "PERFORM pg_sleep(0.02);")
    await execute(url, f"ALTER DATABASE {url.rpartition('/')[2]} SET statement_timeout = '1s'")
    store = await Store.open(url, migrate=False)
    outcomes = await store.create(keyed([f"{number}" for number in range(150)]))
    assert {type(outcome) for outcome in outcomes} == {Created}
    # The next batch starts smaller.
    started = time.monotonic()
    await store.create(keyed([f"{number}" for number in range(150, 200)]))
    assert time.monotonic() - started < 0.02 * 50 + 0.9
    await store.close()


async def test_a_run_that_takes_too_long_by_itself_is_its_own_matter(url: str) -> None:
    await (await Store.open(url, migrate=True)).close()
    await add_trigger(url, "IF new.name = 'slow' THEN PERFORM pg_sleep(5); END IF;")
    await execute(url, f"ALTER DATABASE {url.rpartition('/')[2]} SET statement_timeout = '300ms'")
    store = await Store.open(url, migrate=False)
    batch = keyed([f"{number}" for number in range(4)])
    batch[2].run.name = "slow"
    slow = (await store.create(batch))[2]
    assert isinstance(slow, Undecided)
    assert slow.blamed
    assert "timeout" in slow.reason
    assert len(await fetch_runs(url)) == 3
    await store.close()


async def test_a_statement_that_waits_for_a_lock_is_waited_for(store: Store, url: str) -> None:
    """The wait exceeds the timeout for a silent server."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("LOCK TABLE flow_run")
    creating = asyncio.create_task(store.create(keyed(["a"])))
    await asyncio.sleep(13)
    assert not creating.done()
    await transaction.rollback()
    await connection.close()
    assert isinstance((await creating)[0], Created)


async def test_a_network_that_falls_silent_is_given_up(cluster: PostgreSQL, url: str) -> None:
    """The proxy accepts and acknowledges all data, like one that has lost its server."""
    async with Proxy([cluster.port]) as network:
        through = url.replace(f":{cluster.port}/", f":{network.port}/")
        store = await Store.open(through, migrate=True)
        await store.create(keyed(["a"]))
        network.silence()
        for work in (lambda: store.create(keyed(["b"])), store.ping):
            started = time.monotonic()
            with pytest.raises(Fault):
                await work()
            assert time.monotonic() - started < SECONDS
        network.speak()
        # The first try may have been stored.
        assert not isinstance((await create_at_last(store, keyed(["b"])))[0], Refusal)
        network.silence()
        started = time.monotonic()
        await store.close()
        assert time.monotonic() - started < SECONDS


async def test_who_leaves_a_silent_network_does_not_wait_for_it(cluster: PostgreSQL, url: str) -> None:
    async with Proxy([cluster.port]) as network:
        store = await Store.open(url.replace(f":{cluster.port}/", f":{network.port}/"), migrate=True)
        network.silence()
        creating = asyncio.create_task(store.create(keyed(["a"])))
        await asyncio.sleep(0.5)
        started = time.monotonic()
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        await store.close()
        assert time.monotonic() - started < SECONDS


async def test_a_connection_is_kept_alive_and_given_up_by_the_network(store: Store) -> None:
    """asyncpg has no setting for it, so the store uses more than its documented interface."""
    async with store.database.connect() as connection:
        sync = connection.sync_connection
        assert sync is not None
        there = sync.connection.driver_connection._transport.get_extra_info("socket")
        assert there.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
        assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000


async def test_a_cancelled_batch_leaves_no_lock(store: Store, url: str) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("LOCK TABLE flow_run_state")
    creating = asyncio.create_task(store.create(keyed(["a"])))
    await asyncio.sleep(0.3)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    await transaction.rollback()
    async with asyncio.timeout(5):
        async with connection.transaction():
            await connection.execute("LOCK TABLE flow_run, flow_run_state")
        assert await connection.fetchval("SELECT count(*) FROM flow_run") == 0
    await connection.close()
    assert isinstance((await store.create(keyed(["a"])))[0], Created)


async def test_each_of_several_hosts_is_tried(cluster: PostgreSQL, url: str) -> None:
    name = url.rpartition("/")[2]
    there, nowhere = f"host=127.0.0.1:{cluster.port}", "host=127.0.0.1:1"
    for hosts in (f"{nowhere}&{there}", f"{there}&{nowhere}", f"{nowhere}&{nowhere}&{there}"):
        several = f"postgresql+asyncpg://postgres@/{name}?{hosts}"
        await migrations.upgrade(several)
        assert "up to date" in await migrations.current(several)
        store = await Store.open(several, migrate=True)
        await store.ping()
        await store.close()
        assert (await command("db", "current", database_url=several)).code == 0
    with pytest.raises(Fault):
        await Store.open(f"postgresql+asyncpg://postgres@/{name}?{nowhere}&{nowhere}", migrate=True)


async def test_of_several_hosts_a_standby_is_passed_over(cluster: PostgreSQL, url: str) -> None:
    """As after a failover, when the old primary has become a standby."""
    name = url.rpartition("/")[2]
    await migrations.upgrade(url)
    with PostgreSQL() as other:
        while not other.create_database().endswith(f"/{name}"):
            pass
        other.stop()
        other.start_as_standby()
        several = (
            f"postgresql+asyncpg://postgres@/{name}?host=127.0.0.1:{other.port}&host=127.0.0.1:{cluster.port}"
        )
        store = await Store.open(several, migrate=False)
        assert isinstance((await store.create(keyed(["a"])))[0], Created)
        await store.close()


async def test_a_server_that_was_restarted_while_the_store_was_idle_is_served_at_once() -> None:
    with PostgreSQL() as cluster:
        store = await Store.open(cluster.create_database(), migrate=True)
        await asyncio.gather(store.ping(), store.ping())
        await asyncio.to_thread(cluster.stop)
        await asyncio.to_thread(cluster.start)
        assert isinstance((await store.create(keyed(["a"])))[0], Created)
        await store.close()
