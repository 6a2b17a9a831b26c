"""``flow-run-worker bench``: measures throughput and latency of the workers on this machine."""

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
