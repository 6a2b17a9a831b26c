"""A worker in a container's limit of memory answers all, whatever requests become: each shape that
once ended a worker, with good requests among it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.benchmarks.memory import limited, measure
from tests.support.postgresql import PostgreSQL
from tests.support.shapes import BECOMING_LARGE, MIB, Shape
from worker.store import migrations

# Of the benchmark's requests: more than enough to end a worker that bounds nothing.
SCALE = 0.15
# The manifests' limit, and what a worker stays below, in MiB.
LIMIT, LARGEST = 512, 400


@pytest.fixture
def command() -> Iterator[Sequence[str]]:
    """Runs a worker in the limit."""
    with ExitStack() as stack:
        try:
            command = stack.enter_context(limited(LIMIT))
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made here: {error}")
        yield command


@pytest.mark.parametrize("shape", BECOMING_LARGE, ids=lambda shape: shape.what)
@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
async def test_a_worker_in_its_limit_answers_all(
    postgresql: PostgreSQL, amqp_url: str, tmp_path: Path, command: Sequence[str], database: str, shape: Shape
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/runs.db"
    if database == "postgresql":
        url = postgresql.create_database()
        await migrations.upgrade(url)
    measured = await measure(amqp_url, url, "", shape, SCALE, command)
    assert measured.statuses[201] >= int(shape.small * SCALE)
    assert measured.peak < LARGEST * MIB
