"""The picture that ``bench --plot`` draws from measurements."""

import re
from pathlib import Path

from worker.bench import Measurement, draw
from worker.bench.picture import Spread


def measurement(rate: float, latency: float) -> Measurement:
    """A measurement at this rate, with all percentiles equal."""
    return Measurement(
        database="sqlite",
        body="small",
        workers=1,
        requests=1000,
        rate=rate,
        concurrency=0,
        seconds=1.0,
        throughput=rate,
        cpu=100.0,
        memory=90.0,
        p50=latency,
        p90=latency,
        p99=latency,
        p999=latency,
    )


def test_rounds_of_one_load_are_one_point(tmp_path: Path) -> None:
    picture = tmp_path / "loads.svg"
    draw([measurement(rate, latency) for rate in (100.0, 200.0) for latency in (1.0, 9.0, 2.0)], picture)
    # The marks of a line lie within the axes; the marks of an axis lie outside.
    lines = re.findall(r"<g clip-path[^>]*>\s*((?:<use[^>]*/>\s*)+)</g>", picture.read_text())
    served_and_four_percentiles = 5
    assert [line.count("<use") for line in lines] == [2] * served_and_four_percentiles


def test_a_point_is_the_median_and_its_shadow_the_range() -> None:
    assert Spread.of([1.0, 9.0, 2.0]) == Spread(median=2.0, low=1.0, high=9.0)
