"""The line from delivery to acknowledgement, on a real broker and database: a fault of one request
or of the database harms no other request.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from tests.support.database import fetch_runs
from tests.support.producer import Producer
from worker.broker.session import Session
from worker.contract.errors import Fault
from worker.line import understand
from worker.line.create import DatabaseAway
from worker.line.line import Pipeline
from worker.line.patience import PATIENCE, Patience
from worker.observability.metrics import readiness
from worker.observability.traces import Traces
from worker.runs.creation import NewRun
from worker.settings import Settings
from worker.store import Outcome, Store

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


@pytest.fixture
async def store(sqlite_url: str) -> AsyncIterator[Store]:
    store = await Store.open(sqlite_url, migrate=True)
    yield store
    await store.close()


async def serve(
    session: Session,
    store: Store,
    requests: int,
    producer: Producer,
    patience: Patience = PATIENCE,
    **settings: Any,
) -> None:
    """Serve until this many requests were answered, and leave as a worker does."""
    running = asyncio.create_task(Pipeline(session, store, Settings(**settings), Traces(), patience).run())
    async with asyncio.timeout(180):
        while sum(map(len, producer.replies.values())) < requests and not running.done():
            await asyncio.sleep(0.02)
        if not running.done():
            await session.consumer.stop()
        await running


def named(name: str) -> dict[str, Any]:
    return {"flow_id": FLOW_ID, "name": name}


async def test_batches_form_by_themselves_and_all_of_them_are_answered(
    session: Session, store: Store, producer: Producer, sqlite_url: str
) -> None:
    ids = [await producer.publish(named(f"run-{number}")) for number in range(300)]
    ids.append(await producer.publish({"flow_id": 1}))
    await serve(session, store, len(ids), producer, prefetch=100, batch_max=50)
    replies = await producer.replies_to(ids)
    assert [reply.status for reply in replies] == [201] * 300 + [422]
    assert [reply.body["name"] for reply in replies[:300]] == [f"run-{number}" for number in range(300)]
    assert len(await fetch_runs(sqlite_url)) == 300
    await session.close()
    assert await producer.depth() == 0
    assert len(await producer.dead_letters(1)) == 1


async def test_a_message_that_breaks_us_is_answered_and_kept_and_harms_no_other(
    session: Session, store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = understand.decode

    def breaking(message: Any, **options: Any) -> Any:
        if b"breaks" in message.body:
            raise ZeroDivisionError
        return original(message, **options)

    monkeypatch.setattr(understand, "decode", breaking)
    ids = [await producer.publish(named(name)) for name in ("first", "breaks", "last")]
    await serve(session, store, 3, producer)
    assert [reply.status for reply in await producer.replies_to(ids)] == [201, 422, 201]
    assert (await producer.dead_letters(1))[0].body == named("breaks")


async def test_a_run_that_breaks_the_store_is_refused_and_the_others_of_its_batch_are_stored(
    session: Session, store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    original = store.create

    async def breaking(runs: Sequence[NewRun]) -> list[Outcome]:
        if any(new.run.name == "breaks" for new in runs):
            raise ZeroDivisionError
        return await original(runs)

    monkeypatch.setattr(store, "create", breaking)
    ids = [await producer.publish(named(name)) for name in ("first", "breaks", "last")]
    await serve(session, store, 3, producer)
    assert [reply.status for reply in await producer.replies_to(ids)] == [201, 422, 201]
    assert {run["name"] for run in await fetch_runs(sqlite_url)} == {"first", "last"}
    assert readiness.database is None


async def test_a_database_that_is_away_is_waited_for_and_that_is_told(
    session: Session, store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, tries = store.create, []

    async def away(runs: Sequence[NewRun]) -> list[Outcome]:
        tries.append(readiness.database)
        if len(tries) < 4:
            raise Fault("it is gone")
        return await original(runs)

    async def unknown() -> bool:
        return False

    monkeypatch.setattr(store, "create", away)
    monkeypatch.setattr(store, "writes", unknown)
    waiting = await producer.publish(named("waits"))
    await serve(session, store, 1, producer)
    assert (await producer.replies_to([waiting]))[0].status == 201
    assert tries[1:] == ["it is gone"] * 3
    assert readiness.database is None


async def test_a_database_that_stays_away_has_its_requests_handed_back(
    session: Session, store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker does it before the broker's consumer timeout would close the channel."""

    async def away(runs: Sequence[NewRun]) -> list[Outcome]:
        raise Fault("it is gone")

    monkeypatch.setattr(store, "create", away)
    await producer.publish(named("waits"))
    with pytest.raises(ExceptionGroup) as raised:
        await serve(session, store, 1, producer, Patience(database=0.3))
    (cause,) = raised.value.exceptions
    assert isinstance(cause, DatabaseAway)
    await session.close()
    async with asyncio.timeout(180):
        while await producer.depth() != 1:
            await asyncio.sleep(0.02)
    assert producer.replies == {}


async def test_replies_go_where_they_may(
    session: Session, store: Store, producer: Producer, sqlite_url: str
) -> None:
    await producer.publish(named("own queue"), reply_to=producer.queue)
    await producer.publish(named("dead letters"), reply_to=f"{producer.queue}.dead")
    await producer.publish(named("not of the pattern"), reply_to="elsewhere")
    good = await producer.publish(named("good"))
    pattern = producer.reply_to.replace(".", r"\.")
    await serve(session, store, 1, producer, reply_to_pattern=pattern)
    assert (await producer.replies_to([good]))[0].status == 201
    letters = await producer.dead_letters(3)
    assert [letter.headers["x-error-status"] for letter in letters] == [400, 400, 400]
    assert [run["name"] for run in await fetch_runs(sqlite_url)] == ["good"]
    await session.close()
    assert await producer.depth() == 0


async def test_large_bodies_are_taken_as_far_as_they_fit_and_each_is_answered(
    session: Session, store: Store, producer: Producer
) -> None:
    """The small budget for decoded requests makes the stages wait for each other."""
    body = json.dumps({"flow_id": FLOW_ID, "context": {"a": ["x" * 100] * 4_000}}).encode()
    bad = body.replace(b'"context"', b'"contexts"')
    ids = [await producer.publish(bad if number % 5 == 0 else body) for number in range(30)]
    await serve(session, store, 30, producer, prefetch_size=2_000_000)
    replies = await producer.replies_to(ids)
    assert [reply.status for reply in replies] == [422 if number % 5 == 0 else 201 for number in range(30)]
    letters = await producer.dead_letters(6)
    assert {letter.raw for letter in letters} == {bad}
    assert {len(each) for each in producer.replies.values()} == {1}
