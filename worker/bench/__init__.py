"""``flow-run-worker bench``: how many requests a second the workers of this machine serve, and how
long one takes.
"""

from worker.bench.fleet import Fleet
from worker.bench.load import BenchFailed, Body, Load, Requests, open_load
from worker.bench.measurement import Measurement, Pace, measure
from worker.bench.picture import draw, require_drawable

__all__ = [
    "BenchFailed",
    "Body",
    "Fleet",
    "Load",
    "Measurement",
    "Pace",
    "Requests",
    "draw",
    "measure",
    "open_load",
    "require_drawable",
]
