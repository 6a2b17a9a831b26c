"""The start, as users do it; and its log lines about settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import StartWorker
from tests.support.worker_process import ROOT, WorkerProcess

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
SCRIPT = str(Path(sys.executable).with_name("flow-run-worker"))


@pytest.mark.parametrize("program", [(sys.executable, "-m", "worker"), (SCRIPT,)], ids=["module", "script"])
def test_each_program_starts_a_worker_and_a_command(
    program: tuple[str, ...], amqp_url: str, queue: str, sqlite_url: str, tmp_path: Path
) -> None:
    """In other tests they are copies of a process that has imported their modules."""
    settings = {
        "WORKER_AMQP_URL": amqp_url,
        "WORKER_QUEUE": queue,
        "WORKER_DATABASE_URL": sqlite_url,
        "WORKER_HTTP_PORT": "0",
    }
    worker = WorkerProcess(tmp_path / "worker.log", settings, [*program, "run"])
    try:
        worker.wait_until_logged("serving")
        create = [*program, "create", "--flow-id", FLOW_ID]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
        done = subprocess.run(create, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert FLOW_ID in done.stdout
        assert worker.terminate() == 0, worker.output
    finally:
        worker.kill()


def test_a_variable_that_is_no_setting_is_told_at_the_start(
    start_worker: StartWorker, sqlite_url: str
) -> None:
    worker = start_worker(sqlite_url, prefetchh="10", log_format="json\n")
    (line,) = [line for line in worker.output.splitlines() if '"unknown_setting"' in line]
    assert '"setting": "WORKER_PREFETCHH"' in line
    assert '"nearest": "WORKER_PREFETCH"' in line


def test_a_queue_with_a_line_break_in_its_name_is_refused_by_name(
    start_worker: StartWorker, sqlite_url: str
) -> None:
    worker = start_worker(sqlite_url, wait=False, queue="flow-runs\n.create")
    assert worker.process.wait(60) == 2
    assert "WORKER_QUEUE: may have letters of ASCII" in worker.output
    assert "Traceback" not in worker.output
