"""Programs for Node.js, each with its dependencies installed beside it."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.worker_process import ROOT


def installed(program: Path, folder: Path) -> Path:
    """A copy of a program's folder in ``folder``, with its dependencies."""
    copy = folder / program.name
    shutil.copytree(program, copy, ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "install", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(install, cwd=copy, check=True, timeout=120)
    return copy


class NodeProducer:
    """Sends requests by ``deploy/examples/node``."""

    def __init__(self, folder: Path, amqp_url: str, queue: str) -> None:
        self._folder = installed(ROOT / "deploy/examples/node", folder)
        self._environment = {**os.environ, "WORKER_AMQP_URL": amqp_url, "WORKER_QUEUE": queue}

    def create(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Send one request; returns the example's output."""
        return subprocess.run(
            ["node", "create.mjs", *arguments],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
