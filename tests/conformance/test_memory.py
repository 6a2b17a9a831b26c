"""What requests refer to in a Prefect server's database makes no worker too large: each shape in a
container's limit of memory, with good requests among it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from tests.benchmarks.memory import limited, measure
from tests.conformance.prefect_server import PrefectServer
from tests.support.shapes import MIB, OF_DEPLOYMENTS, Shape

# Of the benchmark's requests.
SCALE = 0.2
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


@pytest.mark.parametrize("shape", OF_DEPLOYMENTS, ids=lambda shape: shape.what)
async def test_a_worker_in_its_limit_answers_all(
    prefect: PrefectServer, amqp_url: str, command: Sequence[str], shape: Shape
) -> None:
    measured = await measure(amqp_url, prefect.database_url, prefect.api, shape, SCALE, command)
    assert measured.statuses[201] >= int(shape.small * SCALE)
    assert measured.peak < LARGEST * MIB
