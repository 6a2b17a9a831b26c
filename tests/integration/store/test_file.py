"""An open SQLite file is deleted, moved, replaced or emptied: no answered run is missing from the
file at the path.
"""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import StartWorker
from tests.support.database import fetch_runs
from tests.support.producer import Producer
from tests.support.requests import FLOW_ID, keyed
from worker.contract.errors import Fault
from worker.store import Store
from worker.store.pruning import open_pruning


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "flow runs.db"


@pytest.fixture
async def store(file: Path) -> AsyncIterator[Store]:
    store = await Store.open(f"sqlite:///{file}", migrate=True)
    yield store
    await store.close()


def keys_in(file: Path) -> set[str]:
    with closing(sqlite3.connect(file, timeout=10)) as connection:
        return {key for (key,) in connection.execute("SELECT idempotency_key FROM flow_run")}


async def answered(store: Store, keys: Sequence[str], *, kind: str = "Created") -> None:
    """Create runs as the line does, which waits for faults to end."""
    async with asyncio.timeout(60):
        while True:
            try:
                outcomes = await store.create(keyed(list(keys)))
            except Fault:
                await asyncio.sleep(0.02)
            else:
                break
    assert {type(outcome).__name__ for outcome in outcomes} == {kind}


async def held(store: Store, told: str) -> None:
    """Assert that batches and pings both fail with this fault."""
    for _ in range(3):
        with pytest.raises(Fault, match=told):
            await store.create(keyed(["held"]))
        with pytest.raises(Fault, match=told):
            await store.ping()


async def test_a_file_that_was_moved_away_and_comes_back(store: Store, file: Path) -> None:
    await answered(store, ["one", "two"])
    away = file.with_name("away.db")
    file.rename(away)
    await held(store, "is gone")
    assert not file.exists()
    # The copy is complete: its write-ahead log need not move with it.
    copy = file.with_name("copy.db")
    shutil.copy(away, copy)
    assert keys_in(copy) == {"one", "two"}
    away.rename(file)
    await answered(store, ["held"])
    assert keys_in(file) == {"one", "two", "held"}


async def test_a_file_that_was_deleted_is_not_made_again(store: Store, file: Path) -> None:
    await answered(store, ["one"])
    file.unlink()
    await held(store, "is gone")
    # A new connection does not answer either.
    await store.database.engine.dispose()
    await held(store, "is gone|unable to open")
    assert not file.exists()


async def test_a_folder_that_was_moved_away_and_comes_back(store: Store, file: Path) -> None:
    await answered(store, ["one"])
    away = file.parent.with_name("elsewhere")
    file.parent.rename(away)
    await held(store, "is gone")
    away.rename(file.parent)
    await answered(store, ["two"])
    assert keys_in(file) == {"one", "two"}


async def test_a_new_database_at_the_path_is_no_place_for_what_was_asked_of_the_old(
    store: Store, file: Path
) -> None:
    """As when another worker has started since the file was deleted."""
    await answered(store, ["one"])
    file.rename(file.with_name("away.db"))
    other = await Store.open(f"sqlite:///{file}", migrate=True)
    await answered(other, ["other"])
    await held(store, "another file")
    await answered(other, ["another"])
    await other.close()
    # Put the right file back over it.
    for each in file.parent.glob(f"{file.name}-*"):
        each.unlink()
    file.with_name("away.db").rename(file)
    await answered(store, ["two"])
    assert keys_in(file) == {"one", "two"}


async def test_an_older_copy_is_no_place_for_it_either(store: Store, file: Path) -> None:
    await answered(store, ["one"])
    backup(file, file.with_name("backup.db"))
    await answered(store, ["two"])
    file.with_name("backup.db").rename(file)
    await held(store, "another file")


def backup(file: Path, copy: Path) -> None:
    with closing(sqlite3.connect(file)) as there, closing(sqlite3.connect(copy)) as here:
        there.backup(here)


@pytest.mark.parametrize("way", ["renamed", "linked"])
async def test_a_copy_that_has_all_is_gone_on_with(store: Store, file: Path, way: str) -> None:
    """As with a remounted volume, a file rewritten by VACUUM INTO, or a switched symbolic link."""
    await answered(store, ["one", "two"])
    copy = file.with_name("copy.db")
    backup(file, copy)
    if way == "renamed":
        copy.rename(file)
    else:
        file.rename(file.with_name("old.db"))
        file.symlink_to(copy)
    await answered(store, ["three"])
    await answered(store, ["one", "two", "three"], kind="Existing")
    assert keys_in(file) == {"one", "two", "three"}


async def test_without_any_run_another_database_is_gone_on_with(store: Store, file: Path) -> None:
    copy = file.with_name("copy.db")
    backup(file, copy)
    copy.rename(file)
    await answered(store, ["one"])
    assert keys_in(file) == {"one"}


@pytest.mark.parametrize("suffixes", [["-wal"], ["-shm"], ["-wal", "-shm"]])
async def test_a_log_that_was_removed_loses_no_run(store: Store, file: Path, suffixes: list[str]) -> None:
    """Runs that were already answered are in the removed log, and in no other file."""
    await answered(store, ["one", "two"])
    for suffix in suffixes:
        Path(f"{file}{suffix}").unlink()
    await answered(store, ["three"])
    assert keys_in(file) == {"one", "two", "three"}
    await answered(store, ["one", "two", "three"], kind="Existing")


async def test_a_file_that_was_emptied_is_not_gone_on_with(store: Store, file: Path) -> None:
    await answered(store, ["one"])
    os.truncate(file, 0)
    await held(store, "was emptied")


async def test_what_was_stored_as_the_file_went_is_not_answered(store: Store, file: Path) -> None:
    """The file vanishes after the batch has begun."""
    await answered(store, ["one"])
    away = file.with_name("away.db")
    with pytest.raises(Fault, match="is gone"):
        async with store.database.connect(transaction=True):
            file.rename(away)
    away.rename(file)
    await answered(store, ["two"])


async def test_pruning_ends_where_the_file_is_gone(store: Store, file: Path) -> None:
    await answered(store, ["one"])
    before = datetime.now(UTC) + timedelta(hours=1)
    async with open_pruning(f"sqlite:///{file}", "any", before=before, states={"PENDING"}) as pruning:
        file.rename(file.with_name("away.db"))
        with pytest.raises(Fault, match="is gone"):
            async for _ in pruning.batches(10):
                pass
    assert not file.exists()


async def test_a_worker_holds_requests_while_the_file_is_gone(
    start_worker: StartWorker, producer: Producer, sqlite_url: str
) -> None:
    """All answered runs are in the file afterwards."""
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    file, answered = Path(sqlite_url.partition(":///")[2]), set[str]()
    for number in range(3):
        reply = await producer.request({"flow_id": FLOW_ID, "idempotency_key": f"before {number}"})
        answered.add(reply.body["id"])
        away = file.rename(file.with_name("away.db"))
        ids = [
            await producer.publish({"flow_id": FLOW_ID, "idempotency_key": f"{number}-{each}"})
            for each in range(50)
        ]
        async with asyncio.timeout(120):
            while (readiness := await asyncio.to_thread(worker.readiness))[0] == 200:
                await asyncio.sleep(0.05)
        assert "is gone" in readiness[1]["database"]
        assert not any(producer.replies[each] for each in ids)
        assert not file.exists()
        away.rename(file)
        answered |= {reply.body["id"] for reply in await producer.replies_to(ids)}
        assert (await asyncio.to_thread(worker.readiness))[0] == 200
    assert await asyncio.to_thread(worker.terminate) == 0
    assert "database_file" in worker.output
    assert len(answered) == 153
    assert {row["id"] for row in await fetch_runs(sqlite_url)} == answered
