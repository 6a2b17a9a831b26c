"""Two thousand good requests with every bad kind among them. All good ones are answered, the bad
ones get the right answer, and the workers stay healthy.
"""

from pathlib import Path

import pytest

from tests.conformance.prefect_server import prefect_server
from tests.faults.among_good import Where, kinds, open_scene, serving
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ


# ``make among-good`` tries one worker and three on each database, and each kind alone.
@pytest.mark.parametrize(
    ("where", "workers", "count"),
    [
        ("sqlite", 1, 10),
        # Prefect's database is on PostgreSQL, too.
        pytest.param("postgresql", 1, 10, marks=pytest.mark.long),
        ("prefect", 3, 1),
    ],
)
async def test_every_bad_kind_among_good_ones(
    broker: RabbitMQ, cluster: PostgreSQL, tmp_path: Path, where: Where, workers: int, count: int
) -> None:
    if where == "prefect":
        prefect_server("")  # skips the test, or fails with the reason
    async with open_scene(where, broker, cluster, tmp_path) as scene, serving(scene, workers) as served:
        quick = [kind for kind in kinds(broker) if where in kind.where and not kind.costly]
        measured = await served.serve(quick, count)
        assert measured.wrong == ()
        after = await served.serve((), 0, good=100)
        assert after.wrong == ()
        assert await served.end() == []


# In ``make test``, one such check is among a batch in tests/conformance/test_deployments.py.
@pytest.mark.long
async def test_costly_checks_among_good_ones_and_an_end_amid_them(
    broker: RabbitMQ, cluster: PostgreSQL, tmp_path: Path
) -> None:
    prefect_server("")  # skips the test, or fails with the reason
    costly = {kind.name: kind for kind in kinds(broker) if kind.costly}
    async with (
        open_scene("prefect", broker, cluster, tmp_path) as scene,
        serving(scene, 1, WORKER_SHUTDOWN_TIMEOUT="1") as served,
    ):
        measured = await served.serve(tuple(costly.values()), 1)
        assert measured.wrong == ()
        # It returns once all unanswered requests are in the queue.
        stopped = await served.stop_amid(costly["a pattern without end"])
        assert stopped.codes == [0]
        assert stopped.left
