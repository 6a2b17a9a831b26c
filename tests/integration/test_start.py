"""The log lines about settings at the start."""

from tests.conftest import StartWorker


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
