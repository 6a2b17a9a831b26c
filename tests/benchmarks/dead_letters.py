"""``python -m tests.benchmarks.dead_letters [--letters N]``: measures the commands
``dead-letters`` on letters of nine causes and mixed sizes: seconds, CPU, and memory.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from multiprocessing import Process

from tests.support.letters import LARGE, fill
from tests.support.rabbitmq import RabbitMQ

QUEUE = "letters.create"
MIB = 1024  # in KiB, as ru_maxrss counts on Linux

COMMANDS = (
    ("list",),
    ("list", "--letters"),
    ("list", "--key", "order-7"),
    ("replay", "--status", "409"),
    ("purge", "--all", "--yes"),
    ("list", "--letters", "--limit", "1"),
)


def run(url: str, *arguments: str) -> str:
    """Run a command, print what it took, and return its output."""
    environment = {**os.environ, "WORKER_AMQP_URL": url, "WORKER_QUEUE": QUEUE}
    started = time.monotonic()
    command = (sys.executable, "-m", "worker", *arguments)
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = used.ru_utime + used.ru_stime
    print(
        f"{' '.join(arguments):40} {time.monotonic() - started:6.2f} s  {cpu:5.2f} s of CPU  "
        f"{used.ru_maxrss / MIB:5.0f} MiB  exit code {process.returncode}",
        flush=True,
    )
    return out


def fill_queue(url: str, letters: int, large: int) -> None:
    asyncio.run(fill(url, QUEUE, range(letters), large=large))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--letters", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=LARGE, help="bytes of the largest twentieth")
    given = parser.parse_args()
    with RabbitMQ() as node:
        run(node.url, "--version")
        # In a process of its own: a command begins with the largest size of its parent.
        filling = Process(target=fill_queue, args=(node.url, given.letters, given.large))
        filling.start()
        filling.join()
        for command in COMMANDS:
            out = run(node.url, "dead-letters", *command)
            if command == ("list",):
                print(out)
            else:
                print(out.splitlines()[-1])


if __name__ == "__main__":
    main()
