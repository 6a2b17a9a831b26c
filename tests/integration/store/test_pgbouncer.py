"""Behind PgBouncer in transaction mode, each transaction may get another session, and no session is
ours alone.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from tests.support.command import command
from tests.support.database import fetch, fetch_runs
from tests.support.pgbouncer import PgBouncer
from tests.support.postgresql import PostgreSQL
from tests.support.requests import keyed, unstorable
from worker.contract.errors import Fault, Refusal
from worker.store import Created, Existing, Store

POOL_SIZE = 3
PLANNING = ("enable_seqscan", "jit", "jit_above_cost")


@pytest.fixture(scope="module")
def pgbouncer(postgresql: PostgreSQL) -> Iterator[PgBouncer]:
    with PgBouncer(postgresql.port, pool_size=POOL_SIZE) as pgbouncer:
        yield pgbouncer


@pytest.fixture
def pooled_url(postgresql: PostgreSQL, postgresql_url: str, pgbouncer: PgBouncer) -> str:
    return through(pgbouncer, postgresql, postgresql_url)


@pytest.fixture
async def other_client(pooled_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A client of another program in the same pool."""
    connection = await connect(pooled_url)
    yield connection
    await connection.close()


def through(pgbouncer: PgBouncer, postgresql: PostgreSQL, url: str) -> str:
    return url.replace(f":{postgresql.port}/", f":{pgbouncer.port}/")


async def connect(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(url.replace("+asyncpg", ""), statement_cache_size=0)


async def settings(*connections: asyncpg.Connection) -> list[str]:
    """The planner's settings in the sessions that these clients get, all at once."""
    transactions = [connection.transaction() for connection in connections]
    for transaction in transactions:
        await transaction.start()
    found = [await each.fetchval(f"SHOW {name}") for each in connections for name in PLANNING]
    for transaction in transactions:
        await transaction.rollback()
    return found


@pytest.mark.parametrize("query", ["", "?prepared_statement_cache_size=0", "?application_name=mine"])
async def test_two_stores_make_one_run_for_each_key(
    pooled_url: str, postgresql_url: str, other_client: asyncpg.Connection, query: str
) -> None:
    more_clients = [await connect(pooled_url) for _ in range(POOL_SIZE - 1)]
    before = await settings(other_client, *more_clients)
    stores = [await Store.open(pooled_url + query, migrate=True) for _ in range(2)]
    keys = [str(number) for number in range(100)]

    async def create(store: Store, size: int) -> list[object]:
        batches = [keyed(keys[start : start + size]) for start in range(0, len(keys), size)]
        return [outcome for batch in batches for outcome in await store.create(batch)]

    answers = await asyncio.gather(
        *(create(store, size) for store, size in zip(stores, (7, 10), strict=True))
    )
    assert [len(each) for each in answers] == [100, 100]
    assert sum(isinstance(outcome, Created) for each in answers for outcome in each) == 100
    assert sum(isinstance(outcome, Existing) for each in answers for outcome in each) == 100
    assert len(await fetch_runs(postgresql_url)) == 100
    assert len(await fetch(postgresql_url, "SELECT * FROM flow_run_state")) == 100
    # Each session has kept its settings for any later client.
    assert await settings(other_client, *more_clients) == before
    assert await other_client.fetch("SELECT * FROM pg_prepared_statements") == []
    for store in stores:
        await store.close()
    for client in more_clients:
        await client.close()


async def test_many_at_once_wait_for_a_session(pooled_url: str, postgresql_url: str) -> None:
    stores = [await Store.open(pooled_url, migrate=True) for _ in range(4)]
    await asyncio.gather(
        *(store.create(keyed([f"{number}"])) for number in range(20) for store in stores),
        *(store.ping() for store in stores),
    )
    assert len(await fetch_runs(postgresql_url)) == 20
    for store in stores:
        await store.close()


async def test_a_bad_row_harms_no_other(pooled_url: str, postgresql_url: str) -> None:
    store = await Store.open(pooled_url, migrate=True)
    outcomes = await store.create([*keyed(["a", "b"]), unstorable(idempotency_key="c"), *keyed(["d"])])
    assert [isinstance(outcome, Refusal) for outcome in outcomes] == [False, False, True, False]
    await store.writes()
    assert len(await fetch_runs(postgresql_url)) == 3
    await store.close()


async def test_one_that_takes_settings_and_passes_none_on_is_recognised(
    postgresql: PostgreSQL, postgresql_url: str
) -> None:
    passed_over = "ignore_startup_parameters = enable_seqscan,jit_above_cost"
    with PgBouncer(postgresql.port, settings=passed_over) as pgbouncer:
        store = await Store.open(through(pgbouncer, postgresql, postgresql_url), migrate=True)
        assert store.database.pooler
        await store.create(keyed(["a"]))
        await store.close()


async def test_one_in_session_mode(postgresql: PostgreSQL, postgresql_url: str) -> None:
    with PgBouncer(postgresql.port, pool_mode="session") as pgbouncer:
        store = await Store.open(through(pgbouncer, postgresql, postgresql_url), migrate=True)
        assert isinstance((await store.create(keyed(["a"])))[0], Created)
        await store.close()


async def test_one_that_goes_is_waited_out(postgresql: PostgreSQL, postgresql_url: str) -> None:
    with PgBouncer(postgresql.port) as pgbouncer:
        store = await Store.open(through(pgbouncer, postgresql, postgresql_url), migrate=True)
    with pytest.raises(Fault):
        await store.create(keyed(["a"]))
    await store.close()


async def test_doctor_names_it(pooled_url: str, postgresql_url: str) -> None:
    assert '"pooler"' in (await command("doctor", "--json", database_url=pooled_url)).out
    assert '"pooler"' not in (await command("doctor", "--json", database_url=postgresql_url)).out
