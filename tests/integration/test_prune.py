"""``db prune`` deletes old runs in batches, and nothing else."""

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from tests.conftest import StartWorker
from tests.support.command import Done, command
from tests.support.database import execute, fetch, fetch_runs
from tests.support.producer import Producer
from tests.support.requests import FLOW_ID, request
from tests.support.worker_process import ROOT
from worker.contract.state import TERMINAL_TYPES, StateType
from worker.runs.creation import NewRun
from worker.store import Created, Store

NOW = datetime.now(UTC)
NEW, OLD = NOW - timedelta(days=89), NOW - timedelta(days=91)


def run(key: str, state: str, age: datetime, due: datetime | None = None) -> NewRun:
    """A run that entered its state at that time."""
    new = request(idempotency_key=key, state={"type": state})
    new.run.created = new.run.state_timestamp = age
    if state in TERMINAL_TYPES:
        new.run.end_time = age
    if due is not None:
        new.run.next_scheduled_start_time = due
    return new


async def filled(url: str, runs: Sequence[NewRun]) -> None:
    store = await Store.open(url, migrate=True)
    await store.create(runs)
    await store.close()


async def prune(url: str, *arguments: str) -> Done:
    return await command("db", "prune", "--older-than", "90d", *arguments, database_url=url)


async def keys(url: str) -> set[str]:
    return {each["idempotency_key"] for each in await fetch_runs(url)}


async def test_old_runs_in_a_final_state_go_and_no_others(database_url: str) -> None:
    runs = [
        run(f"{state.value}-{name}", state.value, age)
        for state in StateType
        for name, age in (("new", NEW), ("old", OLD))
    ]
    await filled(database_url, runs)
    everything = {str(each.run.idempotency_key) for each in runs}
    looked = await prune(database_url, "--dry-run")
    assert looked.code == 0, looked.err
    assert "4 old runs to delete: cancelled 1, completed 1, crashed 1, failed 1." in looked.out
    assert "kept, as --state does not name them: cancelling 1, paused 1, pending 1, running 1" in looked.out
    assert await keys(database_url) == everything
    done = await prune(database_url, "--batch", "3")
    assert done.code == 0, done.err
    assert "4 deleted" in done.out
    assert "frees its idempotency key" in done.err
    gone = {f"{state}-old" for state in TERMINAL_TYPES}
    assert await keys(database_url) == everything - gone
    left = await fetch(database_url, "SELECT flow_run_id FROM flow_run_state")
    assert len(left) == len(everything - gone)
    again = await prune(database_url)
    assert (again.code, "0 old runs to delete." in again.out) == (0, True)
    store = await Store.open(database_url, migrate=False)
    assert [type(each) for each in await store.create([run("COMPLETED-old", "PENDING", NOW)])] == [Created]
    await store.close()


async def test_a_state_that_is_not_final_is_deleted_if_it_is_named_and_not_before_it_is_due(
    database_url: str,
) -> None:
    await filled(
        database_url,
        [
            run("completed", "COMPLETED", OLD),
            run("pending", "PENDING", OLD),
            run("due", "SCHEDULED", OLD, due=OLD),
            run("to come", "SCHEDULED", OLD, due=NOW + timedelta(days=1)),
            run("recent", "SCHEDULED", NEW, due=OLD),
        ],
    )
    done = await prune(database_url, "--state", "scheduled", "--state", "PENDING")
    assert done.code == 0, done.err
    assert await keys(database_url) == {"completed", "to come", "recent"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_what_is_interrupted_ends_soon_and_the_next_time_does_the_rest(
    database_url: str, number: signal.Signals
) -> None:
    await filled(database_url, [run(f"{n}", "COMPLETED", OLD) for n in range(30)])
    # No test waits for this pause.
    arguments = ("db", "prune", "--older-than", "90d", "--batch", "10", "--pause", "3600")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT), "WORKER_DATABASE_URL": database_url},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # A shell starts background commands with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        async with asyncio.timeout(180):
            while len(await keys(database_url)) == 30:
                await asyncio.sleep(0.02)
        process.send_signal(number)
        out, err = await asyncio.wait_for(process.communicate(), 180)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 1, err
    assert b"10 deleted" in out
    assert b"Interrupted; run it again for the rest." in err
    assert len(await keys(database_url)) == 20
    done = await prune(database_url)
    assert (done.code, "20 deleted" in done.out) == (0, True)
    assert await keys(database_url) == set()


async def test_requests_for_keys_that_are_being_deleted_make_one_run_each(
    start_worker: StartWorker, producer: Producer, database_url: str
) -> None:
    old = [run(f"key-{number}", "COMPLETED", OLD) for number in range(400)]
    await filled(database_url, old)
    start_worker(database_url)
    pruning = asyncio.create_task(prune(database_url, "--batch", "7", "--pause", "0"))
    statuses: list[int] = []
    while not pruning.done() or len(statuses) < 400:
        sent = [
            await producer.publish({"flow_id": FLOW_ID, "idempotency_key": f"key-{number % 400}"})
            for number in range(len(statuses), len(statuses) + 40)
        ]
        statuses += [reply.status for reply in await producer.replies_to(sent)]
    done = await pruning
    assert done.code == 0, done.err
    assert set(statuses) == {200, 201}
    runs = await fetch_runs(database_url)
    # All old runs are gone; keys that were requested afterwards have new runs.
    assert {str(each["id"]) for each in runs}.isdisjoint(str(each.run.id) for each in old)
    assert len(runs) == len({each["idempotency_key"] for each in runs}) == statuses.count(201)


async def test_a_row_that_is_locked_is_waited_for(database_url: str) -> None:
    await filled(database_url, [run("k", "COMPLETED", OLD)])
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.partition(":///")[2], isolation_level=None)) as file:
            file.execute("BEGIN IMMEDIATE")
            pruning = asyncio.create_task(prune(database_url))
            await asyncio.wait((pruning,), timeout=3)
            assert not pruning.done()
            file.execute("ROLLBACK")
        done = await pruning
    else:
        # Prefect's statements to resume a run that is about to be deleted.
        connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("UPDATE flow_run SET state_type = 'RUNNING', end_time = NULL")
        pruning = asyncio.create_task(prune(database_url))
        async with asyncio.timeout(180):
            while not await fetch(
                database_url, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            ):
                await asyncio.sleep(0.05)
        await transaction.commit()
        await connection.close()
        done = await pruning
    assert done.code == 0, done.err
    assert len(await keys(database_url)) == (0 if database_url.startswith("sqlite") else 1)


async def test_a_right_that_is_missing_is_told(postgresql_url: str) -> None:
    await filled(postgresql_url, [run("k", "COMPLETED", OLD)])
    role = f"pruner_{make_url(postgresql_url).database}"
    await execute(
        postgresql_url, f"CREATE ROLE {role} LOGIN", f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
    )
    url = make_url(postgresql_url).set(username=role).render_as_string(hide_password=False)
    refused = await prune(url)
    assert refused.code == 1
    assert "permission denied for table flow_run" in refused.err
    await execute(postgresql_url, f"GRANT DELETE ON flow_run TO {role}")
    done = await prune(url)
    assert done.code == 0, done.err
    assert await fetch(postgresql_url, "SELECT FROM flow_run_state") == []


async def test_nothing_is_made_where_there_are_no_tables(sqlite_url: str, postgresql_url: str) -> None:
    for url in (sqlite_url, postgresql_url):
        done = await prune(url)
        assert done.code == 1
        assert "no tables yet" in done.err
    assert not Path(sqlite_url.partition(":///")[2]).exists()
