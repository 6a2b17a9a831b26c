"""A worker gets one request whose row the database refuses or can't show: it answers that one and
all others at once.
"""

import json
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import StartWorker
from tests.support.database import execute, fetch_runs
from tests.support.producer import Producer
from tests.support.worker_process import WorkerProcess

FLOW_ID = str(uuid4())


async def raise_for_bad_names(url: str, body: str) -> None:
    await execute(
        url,
        "CREATE OR REPLACE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN IF new.name = 'bad' THEN {body} END IF; RETURN new; END $$",
        "CREATE TRIGGER look BEFORE INSERT ON flow_run FOR EACH ROW EXECUTE FUNCTION look()",
    )


def named(name: str, **fields: Any) -> dict[str, Any]:
    return {"flow_id": FLOW_ID, "name": name, **fields}


async def answered(producer: Producer, ids: list[str]) -> list[int]:
    return [reply.status for reply in await producer.replies_to(ids)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "body",
    [
        "RAISE EXCEPTION 'not this one' USING ERRCODE = '42501';",
        "RAISE EXCEPTION 'not this one' USING ERRCODE = '57P01';",
        "RAISE EXCEPTION 'not this one' USING ERRCODE = '40001';",
        "RETURN NULL;",
    ],
)
async def test_a_refused_row_is_answered_alone_and_among_others(
    start_worker: StartWorker, producer: Producer, postgresql_url: str, body: str, workers: int
) -> None:
    fleet = [start_worker(postgresql_url) for _ in range(workers)]
    await raise_for_bad_names(postgresql_url, body)
    alone = await producer.publish(named("bad"))
    (status,) = await answered(producer, [alone])
    assert status == (409 if "NULL" in body else 422)
    later = [await producer.publish(named(f"later-{number}")) for number in range(20)]
    assert await answered(producer, later) == [201] * 20
    mixed = [await producer.publish(named("bad" if number % 10 == 3 else "good")) for number in range(100)]
    statuses = await answered(producer, mixed)
    assert [each == 201 for each in statuses] == [number % 10 != 3 for number in range(100)]
    assert all(worker.readiness()[0] == 200 for worker in fleet)
    letters = await producer.dead_letters(11)
    assert len({letter.raw for letter in letters}) == 1
    assert len(await fetch_runs(postgresql_url)) == 110


async def test_a_row_over_which_the_server_ends_the_connection_is_refused_at_last(
    start_worker: StartWorker, producer: Producer, postgresql_url: str
) -> None:
    worker = start_worker(postgresql_url)
    await raise_for_bad_names(postgresql_url, "PERFORM pg_terminate_backend(pg_backend_pid());")
    ids = [await producer.publish(named("bad" if number == 50 else "good")) for number in range(100)]
    statuses = await answered(producer, ids)
    assert [status for status in statuses if status != 201] == [422]
    assert statuses[50] == 422
    (letter,) = await producer.dead_letters(1)
    assert "database fails over this run" in letter.headers["x-error"]
    assert worker.readiness()[0] == 200


ODD = {
    "expected_start_time": "'infinity'",
    "start_time": "'-infinity'",
    "next_scheduled_start_time": "'10000-01-01'",
    "end_time": "'0044-03-15 BC'",
    "state_timestamp": "'infinity'",
    "tags": "'[1, null]'",
    "parameters": "'[[]]'",
    "empirical_policy": "'7'",
    "labels": "'\"text\"'",
    "created_by": "'[]'",
    "total_run_time": "'178000000 years'",
}


async def test_an_odd_row_that_exists_is_answered_and_ends_nothing(
    start_worker: StartWorker, producer: Producer, postgresql_url: str
) -> None:
    worker = start_worker(postgresql_url)
    ids = [await producer.publish(named("first", idempotency_key=column)) for column in ODD]
    assert await answered(producer, ids) == [201] * len(ODD)
    for column, value in ODD.items():
        await execute(
            postgresql_url, f"UPDATE flow_run SET {column} = {value} WHERE idempotency_key = '{column}'"
        )
    again = {}
    for column in ODD:
        again[column] = await producer.publish(named("again", idempotency_key=column))
        await producer.publish(named("good"))
    good = [await producer.publish(named("good")) for _ in range(20)]
    assert await answered(producer, good) == [201] * 20
    replies = dict(zip(again, await producer.replies_to(list(again.values())), strict=True))
    for column, reply in replies.items():
        assert reply.status in (200, 422), column
        if reply.status == 422:
            assert column in json.dumps(reply.body), column
    assert replies["expected_start_time"].status == 200
    assert replies["end_time"].status == 422
    assert worker.process.poll() is None
    assert worker.readiness()[0] == 200


async def test_what_a_producer_names_can_not_stop_a_look_up(
    start_worker: StartWorker, producer: Producer, postgresql_url: str
) -> None:
    worker: WorkerProcess = start_worker(postgresql_url)
    keys = ["\ud800", "\0", "x" * 10_000, "💥" * 300]
    ids = [await producer.publish(named("odd", idempotency_key=key)) for key in keys]
    good = [await producer.publish(named("good")) for _ in range(20)]
    assert await answered(producer, good) == [201] * 20
    assert all(status in (201, 422) for status in await answered(producer, ids))
    assert worker.readiness()[0] == 200
