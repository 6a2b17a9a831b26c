"""``make demo-prefect``."""

import os
import subprocess
import sys

import pytest

from tests.support.worker_process import ROOT


@pytest.mark.long
def test_a_deployment_is_started_executed_and_waited_for(amqp_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.demo_prefect"],
        cwd=ROOT,
        env={**os.environ, "WORKER_AMQP_URL": amqp_url},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Completed run") == 2
    assert "'customer': 'Zoë'" in done.stdout
    assert "exit code 0" in done.stdout
