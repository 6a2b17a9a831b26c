"""Workers that share one standard error don't write into each other's lines."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.worker_process import ROOT

LINES = 5_000
WORKERS = 2

# The set-up of a worker's process, and all ways to log.
PROGRAM = """
import logging, sys, structlog, warnings
from worker.observability.logs import configure_logging
configure_logging(sys.argv[1], "info")
log, library = structlog.get_logger(), logging.getLogger("aiohttp.server")
for number in range(int(sys.argv[2])):
    if number % 2:
        log.info("created", number=number, worker=sys.argv[3], text="x" * 300)
    else:
        library.warning("number %d", number)
"""


def start(arguments: list[str], output: int, unbuffered: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], env=environment, stderr=output, cwd=ROOT
    )


@pytest.mark.parametrize("unbuffered", ["1", ""], ids=["unbuffered", "buffered"])
@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_each_line_of_workers_on_one_standard_error_is_whole(
    tmp_path: Path, kind: str, format: str, unbuffered: str
) -> None:
    if kind == "pipe":
        reading, writing = os.pipe()
    else:
        writing = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    workers = [start([format, str(LINES), str(each)], writing, unbuffered) for each in range(WORKERS)]
    os.close(writing)
    if kind == "pipe":
        with os.fdopen(reading, "rb") as pipe:
            lines = pipe.read().decode().splitlines()
    assert {worker.wait(600) for worker in workers} == {0}
    if kind == "file":
        lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == LINES * WORKERS
    if format == "json":
        events = [json.loads(line)["event"] for line in lines]
        assert events.count("created") == LINES * WORKERS // 2
    else:
        whole = re.compile(r"\d{4}-\d\d-\d\dT\S+ \[(info|warning) +\] (created .*|number \d+ *)")
        assert all(whole.fullmatch(line) for line in lines)


@pytest.mark.parametrize("unbuffered", ["1", ""], ids=["unbuffered", "buffered"])
async def test_a_long_line_and_a_traceback_are_one_write(tmp_path: Path, unbuffered: str) -> None:
    """Observed as system calls; a line of 100 kB exceeds any buffer of Python."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not on this machine")
    program = PROGRAM.split("for number")[0] + (
        "log.info('long', text='x' * 100_000)\\n"
        "try: 1 / 0\\n"
        "except ZeroDivisionError: log.exception('failed'); library.exception('failed too')\\n"
    ).replace("\\n", "\n")
    trace = tmp_path / "trace"
    strace = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-qq", "-e", "trace=write", "-e", "write=none", "-s", "20", "-o", str(trace)),
        *(sys.executable, "-c", program, "console"),
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    _, written = await strace.communicate()
    assert strace.returncode == 0, written
    writes = [line for line in trace.read_text().splitlines() if "write(2," in line]
    assert len(writes) == 3
    assert written.count(b"Traceback") == 2
