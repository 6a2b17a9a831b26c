"""Two thousand good requests with some of every bad kind among them: the good ones are all
answered, the bad ones as is right for them, and the workers are as well as before.
"""

from pathlib import Path

import pytest

from tests.conformance.prefect_server import prefect_server
from tests.faults.among_good import EVERYWHERE, Where, kinds, open_scene, serving
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ


@pytest.mark.parametrize(("workers", "count"), [(1, 10), (3, 1)])
@pytest.mark.parametrize("where", EVERYWHERE)
async def test_every_bad_kind_among_good_ones(
    broker: RabbitMQ, cluster: PostgreSQL, tmp_path: Path, where: Where, workers: int, count: int
) -> None:
    """``python -m tests.faults.among_good`` has each kind by itself, and says how long it took."""
    if where == "prefect":
        prefect_server("")  # skips, or says why there is none
    async with open_scene(where, broker, cluster, tmp_path) as scene, serving(scene, workers) as served:
        measured = await served.serve([kind for kind in kinds(broker) if where in kind.where], count)
        assert measured.wrong == ()
        after = await served.serve((), 0, good=100)
        assert after.wrong == ()
        assert await served.end() == []
