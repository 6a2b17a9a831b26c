"""``python -m tests.benchmarks.latency_plot``: draws the table of latencies over load in
``deploy/docs/measurements.md``, so that picture and table have the same figures.
"""

import re
from pathlib import Path

from tests.support.worker_process import ROOT
from worker.bench.picture import Spread, draw_spreads

PAGE = ROOT / "deploy/docs/measurements.md"
HEADING = "## How does latency grow with the load?"
PICTURE = ROOT / "deploy/docs/pictures/latency-over-load.svg"
# Size of the picture in inches of 72 points.
SIZE = (7.5, 3.2)


def spread(cell: str) -> Spread:
    """The median of the rounds in a cell, and the range after it if there is one."""
    median, *bounds = (float(number) for number in re.findall(r"[\d.]+", cell.replace(",", "")))
    low, high = bounds or (median, median)
    return Spread(median, low, high)


def table() -> list[str]:
    """The rows of the table, as the page has them."""
    section = PAGE.read_text().partition(HEADING)[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("|") and "---" not in line]


def draw(rows: list[str], picture: Path) -> None:
    """The first row has the loads, each other row a percentile."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    named = {
        name: [spread(cell) for cell in cells]
        for name, *cells in ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    }
    (loads_name, loads), *percentiles = named.items()
    rates = [load.median for load in loads]
    # Text stays text, and the same table gives the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "latency", "font.size": 10}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for name, spreads in percentiles:
            draw_spreads(axes, rates, spreads, label=name.partition(",")[0])
        axes.set_xlabel(loads_name)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylabel("latency, ms")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", frameon=False)
        metadata = {"Description": "\n".join(rows), "Date": None, "Creator": None}
        figure.savefig(picture, metadata=metadata)
    # Remove the trailing spaces that matplotlib leaves.
    picture.write_text("".join(f"{line.rstrip()}\n" for line in picture.read_text().splitlines()))


def main() -> None:
    """Draw the picture."""
    draw(table(), PICTURE)
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
