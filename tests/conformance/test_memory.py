"""A worker's memory stays bounded whatever rows in a Prefect server's database its requests refer
to. Each shape runs in a container's memory limit, with good requests mixed in.
"""

from collections.abc import Sequence

import pytest

from tests.benchmarks.memory import measure
from tests.conformance.prefect_server import PrefectServer
from tests.support.shapes import MIB, OF_DEPLOYMENTS, Shape

# Share of the benchmark's requests.
SCALE = 0.2
# The upper bound for a worker in MiB.
LARGEST = 400


# The first has the most requests of which each becomes large, the last one what becomes largest.
SHAPES = [
    pytest.param(
        shape,
        id=shape.what,
        marks=[] if shape in (OF_DEPLOYMENTS[0], OF_DEPLOYMENTS[-1]) else pytest.mark.long,
    )
    for shape in OF_DEPLOYMENTS
]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_worker_in_its_limit_answers_all(
    prefect: PrefectServer, amqp_url: str, worker_in_limit: Sequence[str], shape: Shape
) -> None:
    measured = await measure(amqp_url, prefect.database_url, prefect.api, shape, SCALE, worker_in_limit)
    assert measured.statuses[201] >= int(shape.small * SCALE)
    assert measured.peak < LARGEST * MIB
