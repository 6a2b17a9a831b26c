"""``bench`` measures workers on the given database, restores it, and prints only sound figures."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.database import fetch, fetch_runs
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import ROOT

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


def queues(rabbitmq: RabbitMQ) -> dict[str, int]:
    """The queues of a bench, with the number of consumers of each."""
    lines = rabbitmq.ctl("list_queues", "name", "consumers", "--no-table-headers").splitlines()
    counts = dict(line.split("\t") for line in lines)
    return {name: int(count) for name, count in counts.items() if name.startswith("flow-runs-bench-")}


@pytest.mark.parametrize(
    "database_url", ["postgresql", pytest.param("sqlite", marks=pytest.mark.long)], indirect=True
)
async def test_all_paces_are_measured_and_nothing_is_left_behind(
    rabbitmq: RabbitMQ, database_url: str, producer: Producer, start_worker: StartWorker
) -> None:
    worker = start_worker(database_url)
    await producer.replies_to([await producer.publish({"flow_id": FLOW_ID, "idempotency_key": "bench-mine"})])
    worker.terminate()
    paces = ("--concurrency", "1", "--concurrency", "20", "--rate", "300")
    done = await command(
        *("bench", "--json", "--requests", "200", "--workers", "2", *paces, "--database-url", database_url),
        amqp_url=rabbitmq.url,
    )
    assert done.code == 0, done.err
    measured = json.loads(done.out)
    assert [(each["concurrency"], each["rate"]) for each in measured] == [(1, 0), (20, 0), (0, 300)]
    for each in measured:
        assert (each["requests"], each["workers"]) == (200, 2)
        assert 0 < each["p50"] <= each["p90"] <= each["p99"] <= each["p999"]
        assert each["throughput"] > 0
        assert each["cpu"] > 0
        assert each["memory"] > 10
    assert measured[2]["throughput"] < 330
    assert [run["idempotency_key"] for run in await fetch_runs(database_url)] == ["bench-mine"]
    assert len(await fetch(database_url, "SELECT id FROM flow_run_state")) == 1
    assert queues(rabbitmq) == {}


async def test_without_a_database_a_temporary_one_is_measured(rabbitmq: RabbitMQ) -> None:
    done = await command("bench", "--requests", "3000", "--body", "typical", amqp_url=rabbitmq.url)
    assert done.code == 0, done.err
    assert "sqlite, typical bodies, 3,000 requests" in done.out
    assert "all at once" in done.out


async def test_workers_that_publish_states_leave_nothing_behind(rabbitmq: RabbitMQ) -> None:
    done = await command("bench", "--requests", "600", amqp_url=rabbitmq.url, states="final")
    assert done.code == 0, done.err
    assert queues(rabbitmq) == {}
    assert "flow-runs-bench-" not in rabbitmq.ctl("list_exchanges", "name")


async def test_refused_requests_are_no_throughput(rabbitmq: RabbitMQ) -> None:
    done = await command("bench", "--requests", "50", amqp_url=rabbitmq.url, max_body_bytes=20)
    assert done.code == 1
    assert "not answered by a new run" in done.err
    assert "20 bytes" in done.err
    assert queues(rabbitmq) == {}


async def test_a_schema_is_not_made_unasked(rabbitmq: RabbitMQ, postgresql_url: str) -> None:
    done = await command("bench", "--requests", "50", "--database-url", postgresql_url, amqp_url=rabbitmq.url)
    assert done.code == 1
    assert "db upgrade" in done.err
    assert await fetch(postgresql_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []


@pytest.mark.parametrize("options", [("--plot", "picture.png"), ("--rate", "0"), ("--body", "huge")])
async def test_wrong_usage_is_told_before_anything_is_measured(options: tuple[str, ...]) -> None:
    done = await command("bench", *options, amqp_url="amqp://localhost:1/")
    assert done.code == 2, done.err


async def test_loads_are_drawn(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    picture = tmp_path / "loads.png"
    rates = ("--rate", "200", "--rate", "400")
    done = await command("bench", *rates, "--requests", "100", "--plot", str(picture), amqp_url=rabbitmq.url)
    assert done.code == 0, done.err
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("picture", ["picture.docx", "picture", "nowhere/picture.png", "."])
async def test_a_picture_that_cannot_be_drawn_is_told_before_anything_is_measured(picture: str) -> None:
    done = await command("bench", "--rate", "10", "--plot", picture, amqp_url="amqp://localhost:1/")
    assert done.code == 1
    assert f"--plot {picture}: " in done.err


@pytest.mark.parametrize("interruption", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_bench_leaves_no_queue_and_no_worker(
    rabbitmq: RabbitMQ, interruption: signal.Signals
) -> None:
    # With SIGINT ignored, as a shell starts a command in the background.
    bench = (sys.executable, "-m", "worker", "bench", "--rate", "20", "--requests", "10000")
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'trap "" INT; exec "$@"', "sh", *bench),
        env={**os.environ, "PYTHONPATH": str(ROOT), "WORKER_AMQP_URL": rabbitmq.url},
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(300):
        while not any(queues(rabbitmq).values()):
            await asyncio.sleep(0.1)
        process.send_signal(interruption)
        assert await process.wait() == 130
    assert queues(rabbitmq) == {}
    assert "bench" not in rabbitmq.ctl("list_connections", "client_properties")
