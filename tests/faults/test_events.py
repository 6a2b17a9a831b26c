"""With Prefect's API stopped and workers killed, each run has exactly one event in the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.prefect_server import PrefectServer, prefect_server
from tests.faults.events import kill_workers_without_api
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ


@pytest.fixture(scope="module")
def server(cluster: PostgreSQL) -> Iterator[PrefectServer]:
    with prefect_server(cluster.create_database()) as server:
        yield server


async def test_killed_workers_lose_no_event(server: PrefectServer, broker: RabbitMQ, tmp_path: Path) -> None:
    """Four kills in about twelve seconds; ``python -m tests.faults.events`` takes longer."""
    verdict, count = await kill_workers_without_api(
        server, broker, tmp_path, kills=4, seconds=8, seed=1, pause=0.04
    )
    print(verdict, count)
    assert verdict.sound, verdict
    assert count.sound, count
    assert count.runs > 50
