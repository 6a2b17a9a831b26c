"""A worker in a container's memory limit answers all, whatever its requests become. Each shape once
ended a worker, and good requests are mixed in.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.benchmarks.memory import measure
from tests.support.postgresql import PostgreSQL
from tests.support.shapes import BECOMING_LARGE, MIB, Shape
from worker.store import migrations

# Share of the benchmark's requests: more than enough to end a worker without a bound.
SCALE = 0.15
# The upper bound for a worker in MiB.
LARGEST = 400


@pytest.mark.parametrize("shape", BECOMING_LARGE, ids=lambda shape: shape.what)
@pytest.mark.parametrize("database", [pytest.param("postgresql", marks=pytest.mark.long), "sqlite"])
async def test_a_worker_in_its_limit_answers_all(
    postgresql: PostgreSQL,
    amqp_url: str,
    tmp_path: Path,
    worker_in_limit: Sequence[str],
    database: str,
    shape: Shape,
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/runs.db"
    if database == "postgresql":
        url = postgresql.create_database()
        await migrations.upgrade(url)
    measured = await measure(amqp_url, url, "", shape, SCALE, worker_in_limit)
    assert measured.statuses[201] >= int(shape.small * SCALE)
    assert measured.peak < LARGEST * MIB
