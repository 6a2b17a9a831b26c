"""One row that the database refuses, or accepts without storing it, in a batch that is stored."""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing

import pytest

from tests.support.database import execute, fetch, fetch_runs
from tests.support.requests import keyed, request
from worker.contract.errors import Fault, IntegrityConflict, Refusal
from worker.runs.creation import NewRun
from worker.store import Created, Outcome, Store, StoreError, Undecided
from worker.store.insertion import FAILURES_MAX

BAD = 7
# SQLSTATEs that a user's trigger may raise, whatever they mean from the server.
SQLSTATES = (
    *("P0001", "23514", "45000", "XX000", "42501", "42P01", "42883", "40001", "40P01", "55000", "55P03"),
    *("0A000", "57014", "57P01", "25006", "26000", "42P05", "53100", "53300", "08006", "58030", "28P01"),
    *("3D000", "3F000", "25P02", "22023"),
)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = await Store.open(url, migrate=True)
    yield store
    await store.close()


async def add_trigger(url: str, body: str, *, table: str = "flow_run", when: str = "BEFORE INSERT") -> None:
    """Run PL/pgSQL for each inserted row."""
    await execute(
        url,
        f"CREATE OR REPLACE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        f"CREATE TRIGGER look {when} ON {table} FOR EACH ROW EXECUTE FUNCTION look()",
    )


def change(url: str, *statements: str) -> None:
    """Run statements on an SQLite file."""
    with closing(sqlite3.connect(url.partition(":///")[2], isolation_level=None)) as file:
        for statement in statements:
            file.execute(statement)


def batch() -> list[NewRun]:
    """Fifty runs, one of which is bad."""
    runs = keyed([f"{number}" for number in range(50)])
    runs[BAD].run.name = "bad"
    return runs


def answer(outcome: Outcome) -> Refusal:
    """The final answer to a request."""
    if isinstance(outcome, Undecided):
        assert outcome.blamed
        assert outcome.refusal is not None
        return outcome.refusal
    assert isinstance(outcome, Refusal)
    return outcome


def answer_to_bad(outcomes: Sequence[Outcome]) -> Refusal:
    """The answer to the bad one, after asserting that all others are stored."""
    others = [*outcomes[:BAD], *outcomes[BAD + 1 :]]
    assert {type(each) for each in others} == {Created}
    return answer(outcomes[BAD])


@pytest.mark.parametrize("state", SQLSTATES)
async def test_whatever_a_trigger_says_of_a_row_is_that_rows_matter(
    store: Store, url: str, state: str
) -> None:
    raising = f"IF new.name = 'bad' THEN RAISE EXCEPTION 'not this one' USING ERRCODE = '{state}'; END IF;"
    await add_trigger(url, f"{raising} RETURN new;")
    refused = answer_to_bad(await store.create(batch()))
    assert "not this one" in refused.line
    assert refused.status == (409 if state.startswith("23") else 422)
    assert len(await fetch_runs(url)) == 49
    # It is refused alone as well, since the database accepts our probe row.
    runs = keyed(["alone"])
    runs[0].run.name = "bad"
    assert "not this one" in answer((await store.create(runs))[0]).line


async def test_a_missing_table_of_a_trigger_is_the_matter_of_the_rows_that_need_it(
    store: Store, url: str
) -> None:
    await add_trigger(url, "IF new.name = 'bad' THEN PERFORM 1 FROM no_such_table; END IF; RETURN new;")
    refused = answer_to_bad(await store.create(batch()))
    assert refused.status == 422
    assert "no_such_table" in refused.line


async def test_a_row_that_a_policy_does_not_allow_is_refused(url: str) -> None:
    await (await Store.open(url, migrate=True)).close()
    name = url.rpartition("/")[2]
    await execute(
        url,
        f"CREATE ROLE {name} LOGIN",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}",
        "ALTER TABLE flow_run ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY not_bad ON flow_run USING (true) WITH CHECK (name <> 'bad')",
    )
    store = await Store.open(url.replace("postgres@", f"{name}@"), migrate=False)
    alone = keyed(["alone"])
    alone[0].run.name = "bad"
    assert "row-level security" in answer((await store.create(alone))[0]).line
    refused = answer_to_bad(await store.create(batch()))
    assert refused.status == 422
    assert "row-level security" in refused.line
    await store.close()


async def test_a_right_that_every_row_needs_is_waited_for(url: str) -> None:
    await (await Store.open(url, migrate=True)).close()
    name = url.rpartition("/")[2]
    granted = f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}"
    await execute(url, f"CREATE ROLE {name} LOGIN", granted)
    store = await Store.open(url.replace("postgres@", f"{name}@"), migrate=False)
    await store.create(keyed(["before"]))
    await execute(url, f"REVOKE INSERT ON flow_run FROM {name}")
    for runs in (keyed(["a", "b"]), keyed(["c"])):
        with pytest.raises(Fault, match="permission denied"):
            await store.create(runs)
    await execute(url, granted)
    assert {type(each) for each in await store.create(keyed(["a", "b", "c"]))} == {Created}
    await store.close()


@pytest.mark.parametrize("state", ["53100", "40001", "42501"])
async def test_a_database_that_takes_no_row_at_all_is_a_fault_after_a_few_tries(
    store: Store, url: str, state: str
) -> None:
    await execute(url, "CREATE SEQUENCE tries")
    counting = "PERFORM nextval('tries'); RAISE EXCEPTION 'no' USING ERRCODE = "
    await add_trigger(url, f"{counting} '{state}';")
    with pytest.raises(Fault, match="no"):
        await store.create(batch())
    # Each failing statement, and then our own row.
    connection_tries = await fetch_tries(url)
    assert connection_tries <= 2 * FAILURES_MAX + 1


async def fetch_tries(url: str) -> int:
    (row,) = await fetch(url, "SELECT last_value FROM tries")
    return int(row["last_value"])


@pytest.mark.parametrize(
    ("table", "when", "body"),
    [
        ("flow_run", "BEFORE INSERT", "IF new.name = 'bad' THEN RETURN NULL; END IF; RETURN new;"),
        ("flow_run_state", "BEFORE INSERT", "IF new.message = 'bad' THEN RETURN NULL; END IF; RETURN new;"),
        (
            "flow_run",
            "AFTER INSERT",
            "IF new.name = 'bad' THEN DELETE FROM flow_run WHERE id = new.id; END IF; RETURN NULL;",
        ),
    ],
    ids=["the run before", "its state before", "the run after"],
)
async def test_a_row_that_a_trigger_takes_away_is_refused(
    store: Store, url: str, table: str, when: str, body: str
) -> None:
    await add_trigger(url, body, table=table, when=when)
    runs = batch()
    assert runs[BAD].run.state is not None
    runs[BAD].run.state.message = "bad"
    refused = answer_to_bad(await store.create(runs))
    assert refused.status == 409
    assert "trigger" in refused.line
    assert len(await fetch_runs(url)) == 49


async def test_several_requests_for_a_run_that_is_taken_away_are_refused_each(store: Store, url: str) -> None:
    await add_trigger(url, "IF new.name = 'bad' THEN RETURN NULL; END IF; RETURN new;")
    for keys in (["a", "k", "k"], ["k", "k", "b"], ["k", "k", "k"]):
        runs = keyed(keys)
        for new in runs:
            if new.run.idempotency_key == "k":
                new.run.name = "bad"
        outcomes = await store.create(runs)
        for key, outcome in zip(keys, outcomes, strict=True):
            assert isinstance(outcome, Refusal if key == "k" else Created)


@pytest.mark.parametrize(
    "index",
    [
        "CREATE UNIQUE INDEX names ON flow_run (name)",
        "CREATE UNIQUE INDEX names ON flow_run (name) WHERE name = 'bad'",
        "CREATE UNIQUE INDEX names ON flow_run (lower(name), flow_id)",
    ],
)
async def test_a_run_that_conflicts_with_another_is_refused_by_name(
    store: Store, url: str, index: str
) -> None:
    await execute(url, index)
    first = keyed(["first"])
    first[0].run.name = "bad"
    assert isinstance((await store.create(first))[0], Created)
    refused = answer_to_bad(await store.create(batch()))
    assert isinstance(refused, IntegrityConflict)
    assert "names" in refused.line


async def test_a_key_that_differs_in_its_case_alone_is_refused_where_case_is_nothing(
    store: Store, url: str
) -> None:
    await execute(
        url,
        "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        "ALTER TABLE flow_run ALTER COLUMN idempotency_key TYPE varchar COLLATE nocase",
    )
    await store.create(keyed(["plain-1"]))
    (outcome,) = await store.create(keyed(["PLAIN-1"]))
    refused = answer(outcome)
    assert refused.status == 409
    assert "idempotency_key" in refused.line


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER look BEFORE INSERT ON flow_run WHEN new.name = 'bad' BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER look AFTER INSERT ON flow_run WHEN new.name = 'bad' "
        "BEGIN DELETE FROM flow_run WHERE id = new.id; END",
        "CREATE TRIGGER look BEFORE INSERT ON flow_run WHEN new.name = 'bad' "
        "BEGIN SELECT RAISE(ABORT, 'trigger'); END",
        "CREATE UNIQUE INDEX names ON flow_run (name) WHERE name <> 'trigger'",
    ],
    ids=["ignored", "deleted", "aborted", "unique"],
)
async def test_sqlite_refuses_or_swallows_a_row_and_stores_the_others(
    sqlite_url: str, statement: str
) -> None:
    store = await Store.open(sqlite_url, migrate=True)
    if "UNIQUE" in statement:
        first = keyed(["first"])
        first[0].run.name = "bad"
        await store.create(first)
    change(sqlite_url, statement)
    await store.close()
    store = await Store.open(sqlite_url, migrate=True)
    refused = answer_to_bad(await store.create(batch()))
    assert refused.status == 409
    # The trigger deletes the run, so its state refers to a missing one.
    assert any(each in refused.line for each in ("trigger", "flow_run.name", "FOREIGN KEY"))
    await store.close()


async def test_a_missing_unique_index_is_a_fault_that_says_how_to_make_it(database_url: str) -> None:
    store = await Store.open(database_url, migrate=True)
    await store.create([request()])
    await store.close()
    drop = "DROP INDEX uq_flow_run__flow_id_idempotency_key"
    if database_url.startswith("sqlite"):
        change(database_url, drop)
    else:
        await execute(database_url, drop)
    with pytest.raises(StoreError, match="CREATE UNIQUE INDEX"):
        await Store.open(database_url, migrate=True)
