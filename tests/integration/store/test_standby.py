"""A synchronous standby that is away: no run is answered before a standby can have it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.database import alter_system, execute, fetch, fetch_runs
from tests.support.postgresql import PostgreSQL
from tests.support.requests import keyed
from worker.contract.errors import Fault
from worker.runs.creation import NewRun
from worker.store import Created, Existing, Store

# Seconds that a commit waits in these tests.
SECONDS = 2


class Standby:
    """The name of a missing standby that commits wait for."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def go(self) -> None:
        await alter_system(self._url, "SET synchronous_standby_names = 'away'")

    async def come(self) -> None:
        """Remove the name, as if the standby had confirmed everything."""
        await alter_system(self._url, "RESET synchronous_standby_names")

    async def waiting(self) -> list[int]:
        """The processes whose commits wait for it."""
        query = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        return [row["pid"] for row in await fetch(self._url, query)]

    async def until_waited_for(self) -> list[int]:
        async with asyncio.timeout(60):
            while not (pids := await self.waiting()):
                await asyncio.sleep(0.05)
        return pids


@pytest.fixture
async def standby(url: str) -> AsyncIterator[Standby]:
    standby = Standby(url)
    yield standby
    await standby.come()


async def expect_no_answer(store: Store, runs: list[NewRun]) -> None:
    for _ in range(2):
        with pytest.raises(Fault):
            await store.create(runs)


async def test_a_run_that_no_standby_has_is_not_told_of(url: str, standby: Standby) -> None:
    """Our own timeout ends the wait, which the server's ``statement_timeout`` does not count."""
    store = await Store.open(f"{url}?command_timeout={SECONDS}", migrate=True)
    runs = keyed(["a", "b"])
    try:
        (before,) = await store.create(runs[:1])
        assert isinstance(before, Created)
        await standby.go()
        await expect_no_answer(store, runs[1:])
        assert len(await fetch_runs(url)) == 2  # here it is
        # Nor is a run that was answered before: another server may be the primary by now.
        await expect_no_answer(store, runs[:1])
        # The worker is not consuming here.
        with pytest.raises(Fault):
            await store.writes()
        await standby.come()
        outcomes = await store.create(runs)
        assert [type(each) for each in outcomes] == [Existing, Existing]
        assert {each.run.id for each in outcomes if isinstance(each, Existing)} == {
            new.run.id for new in runs
        }
        await store.writes()
        assert isinstance((await store.create(keyed(["c"])))[0], Created)
    finally:
        await store.close()
    assert len(await fetch_runs(url)) == 3


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_an_operator_who_cancels_the_wait_does_not_make_it_an_answer(
    url: str, standby: Standby, how: str
) -> None:
    """A cancelled wait ends in a warning, not in an error."""
    store = await Store.open(url, migrate=True)
    runs = keyed(["a"])
    try:
        await standby.go()
        for _ in range(3):
            creating = asyncio.create_task(store.create(runs))
            for pid in await standby.until_waited_for():
                await fetch(url, f"SELECT {how}({pid})")
            with pytest.raises(Fault):
                await creating
        creating = asyncio.create_task(store.create(runs))
        await standby.until_waited_for()
        assert not creating.done()
        await standby.come()
        async with asyncio.timeout(60):
            (outcome,) = await creating
        assert isinstance(outcome, Existing)
    finally:
        await store.close()


async def test_a_server_that_was_restarted_while_a_commit_waited(url: str, cluster: PostgreSQL) -> None:
    """Afterwards the store finds the run committed."""
    standby = Standby(url)
    store = await Store.open(url, migrate=True)
    runs = keyed(["a"])
    try:
        await standby.go()
        creating = asyncio.create_task(store.create(runs))
        await standby.until_waited_for()
        await asyncio.to_thread(cluster.kill)
        with pytest.raises(Fault):
            await creating
        await asyncio.to_thread(cluster.start)
        assert len(await fetch_runs(url)) == 1
        creating = asyncio.create_task(store.create(runs))
        await standby.until_waited_for()
        assert not creating.done()
        await standby.come()
        assert isinstance((await creating)[0], Existing)
    finally:
        await store.close()
        await standby.come()


async def test_it_needs_no_right_that_a_worker_has_not(url: str, standby: Standby) -> None:
    store = await Store.open(url, migrate=True)
    await store.close()
    await execute(
        url,
        "CREATE ROLE writer LOGIN NOSUPERUSER",
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO writer",
    )
    store = await Store.open(url.replace("postgres@", "writer@"), migrate=False)
    runs = keyed(["a"])
    try:
        await store.create(runs)
        await standby.go()
        creating = asyncio.create_task(store.create(runs))
        await standby.until_waited_for()
        await standby.come()
        assert isinstance((await creating)[0], Existing)
    finally:
        await store.close()


async def test_without_a_synchronous_standby_nothing_is_written(url: str) -> None:
    store = await Store.open(url, migrate=True)
    runs = keyed(["a"])
    try:
        await store.create(runs)
        before = await fetch(url, "SELECT txid_snapshot_xmax(txid_current_snapshot()) AS next")
        await store.create(runs)
        assert await fetch(url, "SELECT txid_snapshot_xmax(txid_current_snapshot()) AS next") == before
    finally:
        await store.close()
