"""The configured kind of database: if it is a Prefect server's, nothing is created there."""

import json
from pathlib import Path

import pytest

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.database import fetch
from worker.contract.errors import Fault
from worker.store import Store, StoreError


def tables(url: str) -> str:
    if url.startswith("sqlite"):
        return "SELECT name FROM sqlite_master"
    return "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'"


async def test_a_worker_waits_for_prefects_tables_and_makes_none(
    start_worker: StartWorker, database_url: str
) -> None:
    worker = start_worker(database_url, wait=False, database_kind="prefect")
    worker.wait_until_logged("database_away")
    assert "start its server on it, or run 'prefect server database upgrade'" in worker.output
    status, said = worker.readiness()
    assert status == 503
    assert "WORKER_DATABASE_KIND" in json.dumps(said)
    assert worker.terminate() == 0
    if database_url.startswith("sqlite"):
        assert not Path(database_url.partition(":///")[2]).exists()
    else:
        assert await fetch(database_url, tables(database_url)) == []


async def test_an_upgrade_makes_none_either(database_url: str) -> None:
    done = await command("db", "upgrade", database_url=database_url, database_kind="prefect")
    assert done.code == 1
    assert "start its server on it" in done.err
    if database_url.startswith("sqlite"):
        assert not Path(database_url.partition(":///")[2]).exists()
    else:
        assert await fetch(database_url, tables(database_url)) == []


async def test_a_look_makes_nothing(sqlite_url: str) -> None:
    for kind, told in (("any", "no schema yet"), ("prefect", "no tables of a Prefect server yet")):
        done = await command("db", "current", database_url=sqlite_url, database_kind=kind)
        assert told in done.out
    assert not Path(sqlite_url.partition(":///")[2]).exists()


async def test_doctor_says_what_is_waited_for(amqp_url: str, database_url: str) -> None:
    done = await command("doctor", amqp_url=amqp_url, database_url=database_url, database_kind="prefect")
    assert done.code == 1
    assert "a worker waits for" in done.out
    assert "prefect server database upgrade" in done.out


async def test_waiting_in_vain_is_refused(amqp_url: str, database_url: str) -> None:
    """A Prefect server can't start beside the worker's own tables."""
    await (await Store.open(database_url, migrate=True, kind="standalone")).close()
    before = await fetch(database_url, tables(database_url))
    with pytest.raises(StoreError, match="its server can't start"):
        await Store.open(database_url, migrate=True, kind="prefect")
    done = await command("doctor", amqp_url=amqp_url, database_url=database_url, database_kind="prefect")
    assert done.code == 1
    assert "its server can't start" in done.out
    assert await fetch(database_url, tables(database_url)) == before


async def test_a_stranger_is_not_waited_for_either(database_url: str) -> None:
    await fetch(database_url, "CREATE TABLE flow_run (id integer)")
    with pytest.raises(StoreError, match="its server can't start"):
        await Store.open(database_url, migrate=True, kind="prefect")


async def test_an_empty_database_is_waited_at(postgresql_url: str) -> None:
    with pytest.raises(Fault, match="Prefect has not made its tables"):
        await Store.open(postgresql_url, migrate=True, kind="prefect")


async def test_what_a_start_makes_is_told_once(start_worker: StartWorker, database_url: str) -> None:
    for lines in (1, 0):
        worker = start_worker(database_url)
        assert worker.output.count("database_created") == lines
        assert worker.terminate() == 0
