"""``python -m tests.support.top_picture FILE.svg``: a picture of ``flow-run-worker top`` with two
serving workers, on temporary RabbitMQ and PostgreSQL servers.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from tests.support.requests import FLOW_ID
from tests.support.worker_process import ROOT, WorkerProcess
from worker.client import FlowRunClient
from worker.store import migrations

QUEUE = "flow-runs.create"
WORKERS = 2
# At most this many requests a second, so that two cores are enough for everything.
RATE = 400
# As in ``make demo``: one in twenty repeats a key, one in a hundred is refused.
DUPLICATES, MALFORMED = 20, 100
# In characters: wide enough for whole headings.
WIDTH = 160
# Seconds over which the rates count: some hundred batches.
INTERVAL = 5


async def requests() -> AsyncIterator[dict[str, Any]]:
    """Endless requests at this rate."""
    number = 0
    while True:
        key = number - 1 if number % DUPLICATES == DUPLICATES - 1 else number
        body: dict[str, Any] = {"flow_id": FLOW_ID, "idempotency_key": f"order-{key}"}
        if number % MALFORMED == MALFORMED // 2:
            body["flow_id"] = "not-a-uuid"
        yield body
        number += 1
        await asyncio.sleep(1 / RATE)


async def serve_and_look(amqp_url: str, urls: list[str]) -> str:
    """The output of the command, with colours, while requests come."""

    async def send() -> None:
        async with FlowRunClient(amqp_url, queue=QUEUE) as client:
            async for _ in client.create_many(requests()):
                pass

    sending = asyncio.create_task(send())
    try:
        return await asyncio.to_thread(look, amqp_url, urls)
    finally:
        sending.cancel()


def look(amqp_url: str, urls: list[str]) -> str:
    """The command itself."""
    return subprocess.run(
        [sys.executable, "-m", "worker", "top", "--once", "--interval", str(INTERVAL), *urls],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "WORKER_AMQP_URL": amqp_url,
            "WORKER_QUEUE": QUEUE,
            "COLUMNS": str(WIDTH),
            "TERM": "xterm-256color",
            "FORCE_COLOR": "1",
        },
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=180,
    ).stdout


def as_svg(printed: str) -> str:
    """A terminal's output as a picture, in any available fixed-width font."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi(printed.rstrip("\n")))
        svg = console.export_svg(title="flow-run-worker top", unique_id="top")
    # Rich's font would be fetched from the internet; no page may do that.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines())


def main(picture: Path) -> None:
    """Start the servers, and take the picture."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(RabbitMQ())
        database_url = stack.enter_context(PostgreSQL()).create_database()
        asyncio.run(migrations.upgrade(database_url))
        environment = {
            "WORKER_AMQP_URL": broker.url,
            "WORKER_DATABASE_URL": database_url,
            "WORKER_QUEUE": QUEUE,
            "WORKER_HTTP_PORT": "0",
        }
        workers = []
        for number in range(WORKERS):
            worker = WorkerProcess(folder / f"worker-{number}.log", environment)
            stack.callback(worker.kill)
            worker.wait_until_logged("serving")
            workers.append(worker)
        printed = asyncio.run(serve_and_look(broker.url, [worker.http for worker in workers]))
    print(printed, end="")
    picture.write_text(as_svg(printed))
    print(f"{picture}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
