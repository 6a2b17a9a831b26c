"""``python -m tests.benchmarks.steadiness``: measures how steadily an idle machine's cores run.

A virtual machine's core slows down for milliseconds at times when its neighbours are busy. If that
is a hundredth of the time, every p99 measured on it shows the machine as well.
"""

import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby

# A piece of work that takes this many times the median counts as slow.
SLOW = 1.4


def stretches(core: int, seconds: float) -> list[float]:
    """Seconds that each of many equal pieces of work took."""
    os.sched_setaffinity(0, {core})
    took: list[float] = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        kept: dict[int, int] = {}
        for number in range(10_000):
            kept[number & 1023] = number
        took.append(time.perf_counter() - started)
    return took


def main(seconds: float) -> None:
    """Measure all cores at once."""
    cores = sorted(os.sched_getaffinity(0))
    with ProcessPoolExecutor(len(cores)) as pool:
        for core, took in zip(cores, pool.map(stretches, cores, [seconds] * len(cores)), strict=True):
            limit = SLOW * statistics.median(took)
            episodes = [sum(group) for slow, group in groupby(took, limit.__lt__) if slow]
            print(
                f"core {core}: slower than 1/{SLOW} of its usual speed for {sum(episodes) / sum(took):.1%} of the time, "
                f"{max(episodes, default=0) * 1000:.0f} ms at the longest"
            )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 15.0)
