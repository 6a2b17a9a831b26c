"""A worker process for a test, started and ended as a user does it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.forks import ROOT, Fork, Forks
from tests.support.processes import wait_until

# One client for all: making one takes 30 ms of CPU, a request 1 ms.
HTTP = httpx.Client(verify=False, timeout=60)


class WorkerProcess:
    """A worker as a user runs it: ``python -m worker run`` with settings in its environment.

    Args:
        environment: its settings, or any other variables.
        command: starts another program. It is a new process then, as it is with variables that are
            no settings, which may be read when Python starts.
    """

    def __init__(self, log: Path, environment: dict[str, str], command: Sequence[str] | None = None) -> None:
        self.log = log
        self.process: subprocess.Popen[bytes] | Fork
        whole = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        with log.open("wb") as output, open(os.devnull, "rb") as nothing:
            if command is None and all(name.startswith("WORKER_") for name in environment):
                files = (nothing, output, output)
                self.process = Forks.shared().start("run", folder=log.parent, environment=whole, files=files)
                return
            self.process = subprocess.Popen(
                command or [sys.executable, "-m", "worker", "run"],
                cwd=log.parent,
                env=whole,
                stdin=nothing,
                stdout=output,
                stderr=output,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_until_logged(self, event: str, seconds: float = 180.0) -> None:
        def logged() -> bool:
            assert self.process.poll() is None or event in self.output, self.output
            return event in self.output

        wait_until(logged, f"'{event}' in {self.log}", seconds)

    @property
    def http(self) -> str:
        """The URL of its side port."""
        found = re.search(r"url=(http://[0-9.:]+)", re.sub(r"\x1b\[[0-9;]*m", "", self.output))
        assert found is not None, self.output
        return found[1]

    def readiness(self) -> tuple[int, dict[str, str]]:
        """The status and body of ``/readyz``."""
        response = HTTP.get(f"{self.http}/readyz")
        return response.status_code, response.json()

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of a metric; None if there is none with these labels."""
        for family in text_string_to_metric_families(HTTP.get(f"{self.http}/metrics").text):
            for sample in family.samples:
                if sample.name == name and sample.labels.items() >= labels.items():
                    return float(sample.value)
        return None

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(180)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
