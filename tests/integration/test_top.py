"""``top``: one view of it, as a user sees it; and the percentiles that it shows."""

import asyncio

import pytest

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.producer import Producer
from worker.operate.top import Page, WorkerView, quantile

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


async def test_it_shows_what_the_workers_do(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, amqp_url: str
) -> None:
    worker = start_worker(sqlite_url)
    looking = asyncio.create_task(
        command(
            "top",
            "--once",
            "--interval",
            "3",
            worker.http,
            "http://127.0.0.1:9",
            amqp_url=amqp_url,
            queue=producer.queue,
        )
    )
    while not looking.done():
        await producer.request({"flow_id": FLOW_ID})
        await producer.request({"flow_id": 1})
    done = await looking
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{producer.queue}  ready 0  consumers 1  dead letters ")
    served, gone = (
        next(line for line in lines if url in line) for url in (worker.http, "http://127.0.0.1:9")
    )
    cells = [cell.strip() for cell in served.strip("│").split("│")]
    assert cells[1:3] == ["up", "up"]
    created, existing, refused = (int(cell.replace(",", "")) for cell in cells[3:6])
    assert created > 0
    assert existing == 0
    assert refused > 0
    assert "Cannot connect" in gone
    narrow = await command(
        *("top", "--once", "--interval", "0.2", worker.http),
        columns=80,
        amqp_url=amqp_url,
        queue=producer.queue,
    )
    assert narrow.code == 0, narrow.err
    assert max(len(line.rstrip()) for line in narrow.out.splitlines()) <= 80
    for piece in (f"{worker.http} ", "broker up", "database up", "created 0/s", "in flight 0"):
        assert piece in narrow.out


async def test_a_broker_that_is_away_is_told_and_no_worker_is_a_failure() -> None:
    done = await command(
        "top", "--once", "--interval", "0.2", "http://127.0.0.1:9", amqp_url="amqp://127.0.0.1:9/"
    )
    assert done.code == 1, done.err
    assert "No broker answers" in done.out
    assert "Cannot connect" in done.out


@pytest.mark.parametrize(
    ("buckets", "q", "expected"),
    [
        ([(1.0, 10.0), (2.0, 10.0), (float("inf"), 10.0)], 0.5, 0.5),
        ([(1.0, 0.0), (2.0, 10.0), (float("inf"), 10.0)], 0.5, 1.5),
        ([(1.0, 5.0), (2.0, 10.0), (float("inf"), 10.0)], 0.99, 1.98),
        ([(1.0, 0.0), (2.0, 0.0), (float("inf"), 10.0)], 0.5, 2.0),
    ],
)
def test_quantiles_are_those_of_prometheus(
    buckets: list[tuple[float, float]], q: float, expected: float
) -> None:
    assert quantile(buckets, q) == pytest.approx(expected)


def test_a_counter_that_shrank_is_that_of_a_new_process() -> None:
    text = 'flow_run_worker_requests_total{{outcome="created",status="201"}} {}\n'
    before, now = (Page.parse(at, text.format(value)) for at, value in ((0.0, 100.0), (2.0, 10.0)))
    assert WorkerView.between("http://w", before, now).created == 5.0


def test_after_a_look_that_failed_nothing_counts_as_done_since() -> None:
    page = Page.parse(2.0, 'flow_run_worker_requests_total{outcome="created",status="201"} 100\n')
    assert WorkerView.between("http://w", Page(0.0, error="no answer"), page).created == 0.0
