"""Throughput and latency over offered load, as a picture."""

from importlib.util import find_spec
from pathlib import Path

from worker.bench.load import BenchFailed
from worker.bench.measurement import PERCENTILES, Measurement


def require_drawable(path: Path) -> None:
    """See, before anything is measured, that a picture can be drawn into this file.

    Raises:
        BenchFailed: matplotlib is not installed, or writes no such files, or it is a folder, or its
            folder is not there.
    """
    if find_spec("matplotlib") is None:
        raise BenchFailed("--plot needs matplotlib: pip install matplotlib")
    from matplotlib.backend_bases import FigureCanvasBase

    if path.is_dir():
        raise BenchFailed(f"--plot {path}: a folder")
    # Without a suffix matplotlib would append one, and write a file of another name.
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise BenchFailed(f"--plot {path}: matplotlib writes {', '.join(sorted(formats))}")
    if not path.parent.is_dir():
        raise BenchFailed(f"--plot {path}: there is no folder {path.parent}")


def draw(measurements: list[Measurement], path: Path) -> None:
    """Throughput and latency percentiles over offered load, as a picture (see
    :func:`require_drawable`).
    """
    from matplotlib.figure import Figure

    offered = sorted((each for each in measurements if each.rate), key=lambda each: each.rate)
    figure = Figure(figsize=(9, 7), layout="constrained")
    served, latency = figure.subplots(2, 1, sharex=True)
    rates = [each.rate for each in offered]
    served.plot(rates, rates, linestyle=":", color="grey", label="offered")
    served.plot(rates, [each.throughput for each in offered], marker="o", label="served")
    served.set_ylabel("requests/s")
    served.legend()
    for name in PERCENTILES:
        latency.plot(
            rates,
            [getattr(each, name) for each in offered],
            marker="o",
            label="p99.9" if name == "p999" else name,
        )
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter("{x:g}")
    latency.yaxis.set_minor_formatter("{x:g}")
    latency.set_ylabel("latency, ms")
    latency.set_xlabel("offered load, requests/s")
    latency.legend()
    first = offered[0]
    figure.suptitle(f"workers: {first.workers}, {first.database}, {first.body} bodies")
    figure.savefig(path)
