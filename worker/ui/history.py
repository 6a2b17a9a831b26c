"""The last hour in numbers, for the charts. Knows no worker's page."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from worker.operate.top import View, WorkerView

SECONDS = 3600.0
Number = float | None


def _all(value: Callable[[WorkerView], float]) -> Callable[[View], Number]:
    """The sum of all workers that answer."""
    return lambda view: sum(value(each) for each in _answering(view))


def _slowest(value: Callable[[WorkerView], Number]) -> Callable[[View], Number]:
    """The largest of all workers that have one."""
    return lambda view: max((each for each in map(value, _answering(view)) if each is not None), default=None)


def _answering(view: View) -> list[WorkerView]:
    return [each for each in view.workers if each.error is None]


def _queue(value: Callable[[View], Number]) -> Callable[[View], Number]:
    return lambda view: None if view.queue.error is not None else value(view)


def _percentile(stage: str, place: int) -> Callable[[View], Number]:
    """In milliseconds."""

    def of(worker: WorkerView) -> Number:
        percentiles: tuple[float, float] | None = getattr(worker, stage)
        return None if percentiles is None else percentiles[place] * 1000

    return _slowest(of)


MIB = 1024 * 1024
# By name, in the order of a point's numbers. Rates are per second.
SERIES: dict[str, Callable[[View], Number]] = {
    "ready": _queue(lambda view: view.queue.ready),
    "in_flight": _all(lambda worker: worker.in_flight),
    "dead_letters": _queue(lambda view: view.queue.dead_letters),
    "incoming": lambda view: view.incoming,
    "outgoing": lambda view: view.outgoing,
    "created": _all(lambda worker: worker.created),
    "existing": _all(lambda worker: worker.existing),
    "read": _all(lambda worker: worker.read),
    "refused": _all(lambda worker: worker.refused),
    "redelivered": _all(lambda worker: worker.redelivered),
    "create_p50": _percentile("create", 0),
    "create_p99": _percentile("create", 1),
    "reply_p50": _percentile("reply", 0),
    "reply_p99": _percentile("reply", 1),
    "answering": lambda view: len(_answering(view)),
    "with_broker": _all(lambda worker: worker.broker),
    "with_database": _all(lambda worker: worker.database),
    "held": _all(lambda worker: worker.held_bytes / MIB),
    "memory": _all(lambda worker: worker.memory / MIB),
    "events_age": _slowest(lambda worker: worker.events_age),
    "states_lag": _slowest(lambda worker: worker.states_lag),
}


class History:
    """Points of the last hour.

    Args:
        interval: seconds between two points.
    """

    def __init__(self, interval: float) -> None:
        self._points: deque[list[Number]] = deque(maxlen=math.ceil(SECONDS / interval))
        self.last = 0

    def add(self, view: View) -> None:
        """Keep a point: its time in seconds since 1970, and the numbers of :data:`SERIES`."""
        self.last += 1
        self._points.append([round(time.time(), 1), *(_short(each(view)) for each in SERIES.values())])

    def since(self, number: int) -> Sequence[list[Number]]:
        """The points after this one. All points if it is not of this run."""
        new = self.last - number if 0 <= number <= self.last else len(self._points)
        return [*self._points][max(len(self._points) - new, 0) :]


def _short(number: Number) -> Number:
    """With four digits: charts show no more."""
    return None if number is None else float(f"{number:.4g}") if abs(number) < 10_000 else round(number)
