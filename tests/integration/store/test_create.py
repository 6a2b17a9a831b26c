"""Creates batches of runs, each run once; a run that can't be created harms no other."""

import asyncio
import dataclasses
import random
from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

import asyncpg
import pytest
import sqlalchemy as sa

from tests.conformance.cases import STATES
from tests.support.database import fetch, fetch_runs
from tests.support.requests import EVERY_FIELD, FLOW_ID, keyed, request, unstorable
from worker.contract.errors import IntegrityConflict, Refusal
from worker.contract.flow_run import FlowRun
from worker.runs.creation import NewRun
from worker.store import Created, Existing, Store
from worker.store.tables import flow_run


def kinds(outcomes: Sequence[object]) -> list[str]:
    return [type(outcome).__name__ if not isinstance(outcome, Refusal) else "Refusal" for outcome in outcomes]


def run_of(outcome: object) -> FlowRun:
    assert isinstance(outcome, (Created, Existing))
    return outcome.run


async def test_every_column_comes_back_as_it_was_written(store: Store) -> None:
    for state in STATES:
        new = request(
            **{**EVERY_FIELD, "idempotency_key": state, "state": {**EVERY_FIELD["state"], "type": state}}
        )
        for number, field in enumerate(dataclasses.fields(FlowRun)):
            if (
                getattr(new.run, field.name) is None
                and field.name.endswith("_id")
                and field.name != "work_pool_id"
            ):
                setattr(new.run, field.name, UUID(int=number))
        new.run.created_by = {"type": "AUTOMATION"}
        written = dataclasses.replace(new.run)
        assert kinds(await store.create([new])) == ["Created"]
        (again,) = await store.create([request(idempotency_key=state, flow_id=FLOW_ID)])
        assert isinstance(again, Existing)
        assert again.run == written


async def test_sqlite_stores_as_prefect_does(sqlite_url: str) -> None:
    store = await Store.open(sqlite_url, migrate=True)
    new = request(idempotency_key="k")
    await store.create([new])
    await store.close()
    (row,) = await fetch_runs(sqlite_url)
    assert (row["id"], row["flow_id"]) == (str(new.run.id), FLOW_ID)
    assert row["created"] == new.run.created.strftime("%Y-%m-%d %H:%M:%S.%f")
    assert row["total_run_time"] == "1970-01-01 00:00:00.000000"
    assert (row["auto_scheduled"], row["tags"]) == (0, "[]")


async def test_a_number_beyond_64_bits_is_read_as_it_was_written(store: Store) -> None:
    (created,) = await store.create([request(idempotency_key="k", parameters={"big": 2**70})])
    (existing,) = await store.create([request(idempotency_key="k", parameters={"big": 1})])
    assert run_of(created).parameters == run_of(existing).parameters == {"big": 2**70}


async def test_duplicates_in_one_batch_make_one_run(store: Store, database_url: str) -> None:
    batch = keyed(["a", "b", "a", "c", "a", "b"])
    outcomes = await store.create(batch)
    assert kinds(outcomes) == ["Created", "Created", "Existing", "Created", "Existing", "Existing"]
    assert [run_of(outcome).id for outcome in outcomes] == [
        batch[leader].run.id for leader in (0, 1, 0, 3, 0, 1)
    ]
    assert len(await fetch_runs(database_url)) == 3
    assert len(await fetch(database_url, "SELECT * FROM flow_run_state")) == 3


async def test_a_key_counts_within_its_flow_alone(store: Store) -> None:
    other = "6f9619ff-8b86-4d11-b42d-00cf4fc964ff"
    assert kinds(
        await store.create([request(idempotency_key="k"), request(idempotency_key="k", flow_id=other)])
    ) == [
        "Created",
        "Created",
    ]


async def test_without_a_key_each_is_a_run_unless_it_is_the_same_message(store: Store) -> None:
    batch = [
        request(),
        request(),
        request(message_id="m"),
        request(message_id="m"),
        request(message_id="m", name="other"),
    ]
    assert kinds(await store.create(batch)) == ["Created", "Created", "Created", "Existing", "Created"]
    (again,) = await store.create([request(message_id="m")])
    assert isinstance(again, Existing)
    assert again.run.id == batch[2].run.id


async def test_an_empty_key_is_no_key(store: Store) -> None:
    assert kinds(await store.create([request(idempotency_key=""), request(idempotency_key="")])) == [
        "Created",
        "Created",
    ]


async def test_the_next_leads_where_the_first_of_a_key_is_refused(store: Store) -> None:
    batch = [unstorable(idempotency_key="k"), unstorable(idempotency_key="k"), *keyed(["k", "k"])]
    outcomes = await store.create(batch)
    assert kinds(outcomes) == ["Refusal", "Refusal", "Created", "Existing"]
    assert run_of(outcomes[3]).id == batch[2].run.id


@pytest.mark.parametrize("size", [1, 2, 5])
async def test_a_bad_row_harms_no_other_wherever_it_is(store: Store, database_url: str, size: int) -> None:
    for position in range(size):
        batch = keyed([f"{position}-{number}" for number in range(size)])
        batch[position] = unstorable(idempotency_key=f"{position}-{position}")
        assert kinds(await store.create(batch)) == [
            "Refusal" if number == position else "Created" for number in range(size)
        ]
    assert len(await fetch_runs(database_url)) == size * (size - 1)
    assert len(await fetch(database_url, "SELECT * FROM flow_run_state")) == size * (size - 1)


async def test_many_bad_rows_in_a_large_batch(store: Store) -> None:
    batch = [
        (unstorable if number % 7 == 0 else request)(idempotency_key=f"{number}") for number in range(300)
    ]
    assert kinds(await store.create(batch)) == [
        "Refusal" if number % 7 == 0 else "Created" for number in range(300)
    ]


async def test_a_run_that_vanishes_between_conflict_and_look_is_created(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create(keyed(["k"]))
    read, deleter = store._read, await Store.open(database_url, migrate=True)

    async def read_too_late(runs: Sequence[FlowRun]) -> list[FlowRun | None]:
        monkeypatch.undo()
        await _delete(deleter, "k")
        return await read(runs)

    monkeypatch.setattr(store, "_read", read_too_late)
    batch = keyed(["k", "l"])
    outcomes = await store.create(batch)
    await deleter.close()
    assert kinds(outcomes) == ["Created", "Created"]
    assert run_of(outcomes[0]).id == batch[0].run.id


async def test_a_run_that_conflicts_with_one_that_is_not_found_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create(keyed(["k"]))

    async def nothing(runs: Sequence[FlowRun]) -> list[FlowRun | None]:
        return [None] * len(runs)

    monkeypatch.setattr(store, "_read", nothing)
    (refused,) = await store.create(keyed(["k"]))
    assert isinstance(refused, IntegrityConflict)


async def _delete(store: Store, key: str) -> None:
    async with store.database.connect(transaction=True) as connection:
        await connection.execute(sa.delete(flow_run).where(flow_run.c.idempotency_key == key))


async def test_stores_that_race_for_the_same_keys_make_one_run_each(database_url: str) -> None:
    """Each store gets all keys in its own order and in batches of its own size, so that they meet
    in every way.
    """
    keys = [f"{number}" for number in range(1_000)]
    stores = [await Store.open(database_url, migrate=True) for _ in range(3)]

    async def create_all(store: Store, seed: int) -> dict[str, tuple[UUID, str]]:
        mine = random.Random(seed).sample(keys, len(keys))
        size = 50 * (seed + 1)
        got: dict[str, tuple[UUID, str]] = {}
        for start in range(0, len(mine), size):
            batch: list[NewRun] = keyed(mine[start : start + size])
            for key, outcome in zip(mine[start : start + size], await store.create(batch), strict=True):
                got[key] = run_of(outcome).id, kinds([outcome])[0]
        return got

    results = await asyncio.gather(*(create_all(store, seed) for seed, store in enumerate(stores)))
    for store in stores:
        await store.close()
    seen: dict[str, list[tuple[UUID, str]]] = defaultdict(list)
    for result in results:
        for key, outcome in result.items():
            seen[key].append(outcome)
    assert all(len({run_id for run_id, _ in outcomes}) == 1 for outcomes in seen.values())
    assert all(
        sorted(kind for _, kind in outcomes) == ["Created", "Existing", "Existing"]
        for outcomes in seen.values()
    )
    assert len(await fetch_runs(database_url)) == len(keys)


async def test_no_statement_reads_a_whole_table_though_it_was_empty_when_planned(postgresql_url: str) -> None:
    """PostgreSQL plans once for each connection, including its checks of foreign keys. On an empty
    table it may plan a sequential scan.
    """
    connection = await asyncpg.connect(postgresql_url.replace("+asyncpg", ""))
    try:
        # Make the tables first, so that this is not counted.
        await (await Store.open(postgresql_url, migrate=True)).close()
        store = await Store.open(postgresql_url, migrate=False)
        try:
            for table in ("flow_run", "flow_run_state"):
                await connection.execute(f"VACUUM ANALYZE {table}")
            scans = (
                "SELECT relname, seq_scan FROM pg_stat_user_tables "
                "WHERE relname IN ('flow_run', 'flow_run_state')"
            )
            before = await connection.fetch(scans)
            for start in range(20):
                keys = [str(number) for number in range(start, start + 10)]
                await store.create(keyed(keys))
        finally:
            await store.close()
        # A connection's counts are visible once it is closed.
        assert await connection.fetch(scans) == before
        assert await connection.fetchval("SELECT count(*) FROM flow_run") == 29
    finally:
        await connection.close()
