"""Draws throughput and latency over offered load."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from worker.bench.load import BenchFailed
from worker.bench.measurement import PERCENTILES, Measurement


def require_drawable(path: Path) -> None:
    """Check that a picture can be drawn into this file, before anything is measured.

    Raises:
        BenchFailed: matplotlib is not installed or can't write such files, the path is a folder, or
            its folder is missing.
    """
    if find_spec("matplotlib") is None:
        raise BenchFailed("--plot needs matplotlib: pip install matplotlib")
    from matplotlib.backend_bases import FigureCanvasBase

    if path.is_dir():
        raise BenchFailed(f"--plot {path}: a folder")
    # Without a suffix matplotlib would append one, which changes the file's name.
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise BenchFailed(f"--plot {path}: matplotlib writes {', '.join(sorted(formats))}")
    if not path.parent.is_dir():
        raise BenchFailed(f"--plot {path}: there is no folder {path.parent}")


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one figure: the median, the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """The spread of one or more values."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


def draw_spreads(axes: Any, rates: Sequence[float], spreads: Sequence[Spread], label: str) -> None:
    """Draw a line through the medians, and a shadow from smallest to largest."""
    axes.plot(rates, [each.median for each in spreads], marker="o", label=label)
    axes.fill_between(rates, [each.low for each in spreads], [each.high for each in spreads], alpha=0.2)


def draw(measurements: list[Measurement], path: Path) -> None:
    """Draw throughput and latency percentiles over offered load (see :func:`require_drawable`).
    Several measurements of one load are one point.
    """
    from matplotlib.figure import Figure

    offered = sorted((each for each in measurements if each.rate), key=lambda each: each.rate)
    rounds = {rate: list(group) for rate, group in groupby(offered, key=lambda each: each.rate)}
    rates = list(rounds)
    figure = Figure(figsize=(9, 7), layout="constrained")
    served, latency = figure.subplots(2, 1, sharex=True)
    served.plot(rates, rates, linestyle=":", color="grey", label="offered")
    throughputs = [Spread.of(each.throughput for each in group) for group in rounds.values()]
    draw_spreads(served, rates, throughputs, "served")
    served.set_ylabel("requests/s")
    served.legend()
    for name in PERCENTILES:
        latencies = [Spread.of(getattr(each, name) for each in group) for group in rounds.values()]
        draw_spreads(latency, rates, latencies, "p99.9" if name == "p999" else name)
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter("{x:g}")
    latency.yaxis.set_minor_formatter("{x:g}")
    latency.set_ylabel("latency, ms")
    latency.set_xlabel("offered load, requests/s")
    latency.legend()
    first = offered[0]
    figure.suptitle(f"workers: {first.workers}, {first.database}, {first.body} bodies")
    figure.savefig(path)
