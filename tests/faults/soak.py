"""All faults mixed, for as long as wanted: ``python -m tests.faults.soak --minutes 20 --seed 1
[--database sqlite]``.

Three workers, two producers, one fault after another in an order that the seed decides, and a
SIGTERM now and then. It prints the faults and the outcome of the requests, and exits with 1 if a
request was lost or doubled.
"""

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.conftest import open_scene, small_disk
from tests.faults.faults import Fault, Scene, faults_for
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from tests.support.supervisor import resident

WORKERS = 3
# Seconds in which a fault must be noticed, and how often it is injected until then.
NOTICED_SECONDS = 10
TRIES = 10
SIGTERM = "SIGTERM during a fault"


async def soak(
    scene: Scene, faults: Sequence[Fault], console: Console, *, minutes: float = 0.0
) -> tuple[Counter[str], int]:
    """Inject each fault once, and repeat them in other orders until the time is over.

    Returns:
        The count of each fault, and the largest resident memory of a worker in bytes.
    """
    injected: Counter[str] = Counter({fault.name: 0 for fault in faults} | {SIGTERM: 0})
    largest = 0
    deadline = time.monotonic() + minutes * 60
    order: list[Fault] = []
    while not injected.total() or order or time.monotonic() < deadline:
        if minutes and time.monotonic() > deadline:
            break
        if not order:
            order = list(faults)
            scene.moments.shuffle(order)
        fault = order.pop()
        started = time.monotonic()
        if fault.seen:
            # A worker that is still recovering from the last fault would not notice this one.
            await scene.workers.all_serve()
        seen = scene.workers.logged(fault.seen) if fault.seen else 0
        happening = asyncio.create_task(fault.happens(scene))
        try:
            if scene.moments.random() < 0.3 and not fault.name.startswith("worker"):
                await scene.lasts(1)
                code = await scene.workers.restart(scene.moments.randrange(WORKERS))
                assert code == 0, f"a worker left with {code}"
                injected[SIGTERM] += 1
                console.print(f"{SIGTERM}, while: {fault.name}")
        finally:
            # Recover from the fault even if the test fails.
            try:
                await happening
            except Exception:
                console.print(f"{fault.name}: not healed", scene.workers.last_lines(), sep="\n", markup=False)
                raise
        injected[fault.name] += 1
        largest = max([largest, *map(resident, scene.workers.pids)])
        took = time.monotonic() - started
        console.print(
            f"{fault.name}: {took:.0f} s; {len(scene.load.requests)} published, {scene.load.unanswered} open"
        )
        await scene.lasts(2)
        if fault.seen:
            await _until_noticed(scene, fault, seen)
    return injected, largest


async def _until_noticed(scene: Scene, fault: Fault, seen: int) -> None:
    """Wait until a worker has logged the fault; a busy machine takes longer. An idle worker may not
    meet the fault, which is then injected again.
    """
    for _ in range(TRIES):
        try:
            async with asyncio.timeout(NOTICED_SECONDS):
                while scene.workers.logged(fault.seen or "") <= seen:
                    await asyncio.sleep(0.2)
                return
        except TimeoutError:
            await fault.happens(scene)
    raise AssertionError(f"nobody noticed: {fault.name}\n{scene.workers.last_lines()}")


async def run(minutes: float, seed: int, database: str) -> int:
    """Run it all; returns the exit code."""
    console = Console(highlight=False)
    with (
        RabbitMQ() as broker,
        PostgreSQL() as cluster,
        small_disk("3g") as disk,
        tempfile.TemporaryDirectory() as folder,
    ):
        async with open_scene(broker, cluster, database, Path(folder), disk, seed=seed) as scene:
            await scene.workers.start(WORKERS)
            scene.load.start()
            started = time.monotonic()
            faults = [
                fault for fault in faults_for(scene.database_url) if fault.name != "disk full" or scene.disk
            ]
            injected, largest = await soak(scene, faults, console, minutes=minutes)
            await scene.load.stop()
            took = time.monotonic() - started
            await scene.load.settled()
            codes = await scene.workers.stop()
            verdict = await scene.load.verdict(scene.database_url)
            died = scene.workers.died
    table = Table("fault", "injected", title=f"{took / 60:.1f} minutes on {database}, seed {seed}")
    for name, count in injected.items():
        table.add_row(name, str(count))
    table.add_section()
    table.add_row("all", str(injected.total()))
    console.print(table)
    console.print(verdict)
    console.print(
        f"largest resident memory of a worker: {largest / 2**20:.0f} MiB; "
        f"died of themselves: {len(died)}; left with {codes}"
    )
    for log in died:
        console.print(log, markup=False)
    return 0 if verdict.sound and not died and set(codes) == {0} else 1


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the producers' library logs each connection that we break
    sys.exit(asyncio.run(run(options.minutes, options.seed, options.database)))


if __name__ == "__main__":
    main()
