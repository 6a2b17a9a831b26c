"""An unusable database is reported when it is opened, in a helpful line; foreign databases stay
unchanged.
"""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.command import command
from tests.support.database import execute, fetch
from tests.support.postgresql import PostgreSQL
from tests.support.requests import keyed
from worker.contract.errors import Fault
from worker.store import Store, StoreError, migrations


async def test_ten_migrate_at_once(database_url: str) -> None:
    upgrades = [command("db", "upgrade", database_url=database_url) for _ in range(10)]
    done = await asyncio.gather(*upgrades)
    assert [each.code for each in done] == [0] * 10, "\n".join(each.err for each in done)
    assert await fetch(database_url, f"SELECT version_num FROM {migrations.VERSION_TABLE}") == [
        {"version_num": migrations._head()}
    ]


async def test_ten_open_at_once(database_url: str) -> None:
    for store in await asyncio.gather(*(Store.open(database_url, migrate=True) for _ in range(10))):
        await store.ping()
        await store.close()


@pytest.mark.parametrize("form", ["postgresql+asyncpg", "postgresql", "postgres"])
async def test_forms_of_a_postgresql_url(postgresql_url: str, form: str) -> None:
    store = await Store.open(postgresql_url.replace("postgresql+asyncpg", form), migrate=True)
    assert (store.kind, store.database.sqlite) == ("standalone", False)
    await store.close()


@pytest.mark.parametrize("form", ["sqlite+aiosqlite", "sqlite"])
async def test_forms_of_a_sqlite_url(sqlite_url: str, form: str) -> None:
    store = await Store.open(sqlite_url.replace("sqlite+aiosqlite", form), migrate=False)
    assert (store.kind, store.database.sqlite) == ("standalone", True)
    await store.close()


@pytest.mark.parametrize(
    "query",
    [
        "?sslmode=prefer",
        "?ssl=prefer",
        "?application_name=mine&sslmode=disable",
        "?prepared_statement_cache_size=0",
        "?prepared_statement_cache_size=10&command_timeout=30",
        "?target_session_attrs=read-write",
    ],
)
async def test_what_a_postgresql_url_may_ask_for(postgresql_url: str, query: str) -> None:
    store = await Store.open(postgresql_url + query, migrate=True)
    await store.ping()
    await store.close()


@pytest.mark.parametrize("query", ["?ssl=true", "?no_such_setting=1", "?command_timeout=long"])
async def test_what_it_may_not_ask_for_is_told(postgresql_url: str, query: str) -> None:
    with pytest.raises(StoreError, match="behind the '\\?'"):
        await Store.open(postgresql_url + query, migrate=True)


@pytest.mark.parametrize(
    "url",
    [
        "no url",
        "",
        "mysql://user:secret@host/db",
        "sqlite:////no/such/folder/file.db",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
async def test_a_wrong_url_is_told(url: str) -> None:
    with pytest.raises(StoreError) as refused:
        await Store.open(url, migrate=True)
    assert "secret" not in str(refused.value)


async def test_what_postgresql_refuses_is_told(postgresql: PostgreSQL) -> None:
    missing = postgresql.url("missing").replace("postgres@", "postgres:secret@")
    stranger = postgresql.url("postgres").replace("postgres@", "stranger:secret@")
    await execute(postgresql.url("postgres"), "CREATE ROLE reader LOGIN")
    reader = postgresql.create_database().replace("postgres@", "reader:secret@")
    for url, words in (
        (missing, "CREATE DATABASE missing"),
        (stranger, "Check the user and the password"),
        (reader, "Grant it"),
    ):
        with pytest.raises(StoreError) as refused:
            await Store.open(url, migrate=True)
        assert words in str(refused.value)
        assert "secret" not in str(refused.value)


async def test_a_database_that_is_not_there_yet_is_a_fault() -> None:
    with pytest.raises(Fault) as refused:
        await Store.open("postgresql://postgres:secret@127.0.0.1:1/db", migrate=True)
    assert "secret" not in str(refused.value)


async def test_postgresql_is_migrated_on_request_alone(postgresql_url: str) -> None:
    with pytest.raises(StoreError, match="db upgrade"):
        await Store.open(postgresql_url, migrate=False)
    assert "no schema yet" in await migrations.current(postgresql_url)
    assert await migrations.upgrade(postgresql_url) == (None, migrations._head())
    assert "up to date" in await migrations.current(postgresql_url)
    store = await Store.open(postgresql_url, migrate=False)
    await store.close()


async def test_a_schema_of_a_newer_worker_is_refused(sqlite_url: str) -> None:
    await (await Store.open(sqlite_url, migrate=True)).close()
    with closing(sqlite3.connect(sqlite_url.partition(":///")[2])) as connection:
        connection.execute(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'")
        connection.commit()
    with pytest.raises(StoreError, match="9999"):
        await Store.open(sqlite_url, migrate=True)


async def test_an_unknown_shape_is_refused_untouched(tmp_path: Path, postgresql_url: str) -> None:
    file = tmp_path / "stranger.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE flow_run (id INTEGER)")
    before = file.read_bytes()
    with pytest.raises(StoreError, match="'flow_run'"):
        await Store.open(f"sqlite:///{file}", migrate=True)
    assert file.read_bytes() == before
    await execute(postgresql_url, "CREATE TABLE flow_run (id integer)")
    with pytest.raises(StoreError, match="'flow_run'"):
        await Store.open(postgresql_url, migrate=True)
    tables = await fetch(
        postgresql_url, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    )
    assert [row["table_name"] for row in tables] == ["flow_run"]


async def test_a_batch_outlives_the_database() -> None:
    """The cluster stops and crashes under the store: each is a fault, and the same batch is stored
    afterwards.
    """
    with PostgreSQL() as cluster:
        store = await Store.open(cluster.create_database(), migrate=True)
        for number, end in enumerate((cluster.stop, cluster.kill)):
            batch = keyed([f"{number}-{each}" for each in range(5)])
            end()
            for _ in range(3):
                with pytest.raises(Fault):
                    await store.create(batch)
            with pytest.raises(Fault):
                await store.ping()
            cluster.start()
            async with asyncio.timeout(30):
                while True:
                    try:
                        outcomes = await store.create(batch)
                        break
                    except Fault:
                        await asyncio.sleep(0.1)
            assert [type(outcome).__name__ for outcome in outcomes] == ["Created"] * 5
            assert [type(outcome).__name__ for outcome in await store.create(batch)] == ["Existing"] * 5
        await store.close()


async def test_a_lock_of_another_writer_is_waited_for_and_then_a_fault(sqlite_url: str) -> None:
    store = await Store.open(sqlite_url, migrate=True)
    batch = keyed(["k"])
    with closing(sqlite3.connect(sqlite_url.partition(":///")[2], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(store.create(batch))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        other.execute("ROLLBACK")
        assert [type(outcome).__name__ for outcome in await waiting] == ["Created"]
        async with store.database.connect() as connection:
            await connection.exec_driver_sql("PRAGMA busy_timeout = 100")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Fault):
            await store.create(keyed(["l"]))
    assert [type(outcome).__name__ for outcome in await store.create(keyed(["l"]))] == ["Created"]
    await store.close()


async def test_a_start_that_finds_the_schema_waits_for_no_writer(sqlite_url: str) -> None:
    await (await Store.open(sqlite_url, migrate=True)).close()
    with closing(sqlite3.connect(sqlite_url.partition(":///")[2], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await (await Store.open(sqlite_url, migrate=True)).close()


async def test_a_batch_that_is_given_up_leaves_no_lock(sqlite_url: str) -> None:
    """It is waiting for another writer's lock, and its thread still gets that lock."""
    store = await Store.open(sqlite_url, migrate=True)
    with closing(sqlite3.connect(sqlite_url.partition(":///")[2], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(store.create(keyed(["k"])))
        await asyncio.sleep(0.3)
        waiting.cancel()
        await asyncio.wait((waiting,))
        other.execute("ROLLBACK")
        await asyncio.sleep(0.5)
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        await store.writes()
        assert other.execute("SELECT count(*) FROM flow_run").fetchone() == (0,)
    assert [type(outcome).__name__ for outcome in await store.create(keyed(["k"]))] == ["Created"]
    await store.close()
