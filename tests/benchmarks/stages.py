"""Where a worker's microseconds go: ``make stages``.

The worker's CPU for a request is measured by the kernel, in a run of its own. In a second run
py-spy looks at the worker's stack every two milliseconds, and each look counts for the stage whose
module is the innermost of the stack. Shares of looks times the CPU are the table. Other work on
the machine makes the CPU larger, but hardly moves the shares.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from worker.bench.measurement import Pace, measure
from worker.store import migrations
from worker.store.engine import parse_url

# The stages by the beginnings of their modules' paths, the longest first. A look counts for the
# innermost frame of one of them: work of a library counts for the stage that asked for it.
STAGES = {
    "worker/amqp": "frames and properties",
    "worker/broker/incoming": "frames and properties",
    "worker/contract/delivery": "frames and properties",
    "worker/broker/in_flight": "deliveries that are held",
    "worker/broker/session": "deliveries that are held",
    "worker/tasks/mailbox": "deliveries that are held",
    "worker/line/understand": "understand: decode, check",
    "worker/contract/decode": "understand: decode, check",
    "worker/contract/plain": "understand: decode, check",
    "worker/contract/kinds": "understand: decode, check",
    "worker/contract/request": "understand: decode, check",
    "worker/contract/validation": "understand: decode, check",
    "worker/contract/message": "understand: decode, check",
    "worker/runs": "create: the run",
    "worker/store": "create: the database",
    "worker/line/create": "create: batches",
    "worker/tasks/collector": "create: batches",
    "worker/line/answer": "answer: the record",
    "worker/contract/record": "answer: the record",
    "worker/contract/encoding": "answer: the record",
    "worker/line/publish": "publish, confirms",
    "worker/line/pending": "publish, confirms",
    "worker/broker/messages": "publish, confirms",
    "worker/broker/publisher": "publish, confirms",
    "worker/line/settle": "settle: acks",
    "worker/broker/acknowledger": "settle: acks",
    "worker/observability": "metrics, logs",
    "aiosqlite": "create: the database",  # its thread
    "worker/cli": "event loop, sockets",  # runs all others
    "worker": "the rest of the worker",
}
_PREFIXES = sorted(STAGES, key=len, reverse=True)
LOOKS_A_SECOND = 500


def stage_of(stack: str) -> str:
    """The stage of a stack, as py-spy writes it: frames from the outermost, each with its file."""
    for frame in reversed(stack.split(";")):
        for prefix in _PREFIXES:
            if f"{prefix}/" in frame or f"{prefix}.py" in frame:
                return STAGES[prefix]
    return "event loop, sockets"


async def looks(seconds: float) -> Counter[str]:
    """Look at the worker that is this process's child, for some seconds; the looks by stages."""
    (worker,) = _children()
    with tempfile.NamedTemporaryFile() as output:
        command = [str(Path(sys.executable).with_name("py-spy")), "record", "--nonblocking"]
        command += ["--format", "raw", "--full-filenames", "--rate", str(LOOKS_A_SECOND)]
        command += ["--duration", f"{seconds:.0f}", "--pid", str(worker), "--output", output.name]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
        found: Counter[str] = Counter()
        for line in Path(output.name).read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            found[stage_of(stack)] += int(count)
    return found


def _children() -> list[int]:
    mine = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for file in mine for pid in file.read_text().split()]
    return [pid for pid in pids if b"\0run" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def compare(databases: list[str], requests: int, concurrency: int, rounds: int) -> None:
    pace = Pace(concurrency=concurrency)
    with RabbitMQ() as rabbitmq, PostgreSQL() as postgresql:
        columns: dict[str, tuple[float, Counter[str]]] = {}
        for name in databases:
            url = None
            if name == "postgresql":
                url = postgresql.create_database()
                await migrations.ensure(parse_url(url), upgrade=True)

            cpu = [
                (await measure(rabbitmq.url, url, pace=pace, requests=requests)).cpu for _ in range(rounds)
            ]
            serving = asyncio.Event()
            measuring = asyncio.create_task(
                measure(
                    rabbitmq.url,
                    url,
                    pace=pace,
                    requests=requests * 3,
                    progress=lambda _, serving=serving: serving.set(),
                )
            )
            await serving.wait()
            # Shorter than the load: it serves less than 12,000 a second.
            found = await looks(max(1.0, requests / 4000))
            await measuring
            columns[name] = median(cpu), found
    table = Table("stage", *(f"{name}, us" for name in columns), title=f"{concurrency} under way")
    for stage in dict.fromkeys(STAGES.values()):
        shares = (cpu * found[stage] / found.total() for cpu, found in columns.values())
        table.add_row(stage, *(f"{share:.1f}" for share in shares))
    table.add_section()
    table.add_row("a request", *(f"{cpu:.1f}" for cpu, _ in columns.values()))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=30_000)
    parser.add_argument("--concurrency", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--database", choices=["postgresql", "sqlite"], action="append")
    given = parser.parse_args()
    databases = given.database or ["postgresql", "sqlite"]
    asyncio.run(compare(databases, given.requests, given.concurrency, given.rounds))


if __name__ == "__main__":
    main()
