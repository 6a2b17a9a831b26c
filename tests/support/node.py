"""The example producer for Node.js, with its dependencies installed beside it."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.worker_process import ROOT


class NodeProducer:
    """Sends requests by ``deploy/examples/node``."""

    def __init__(self, folder: Path, amqp_url: str, queue: str) -> None:
        self._folder = folder / "node"
        self._environment = {**os.environ, "WORKER_AMQP_URL": amqp_url, "WORKER_QUEUE": queue}
        leave_out = shutil.ignore_patterns("node_modules")
        shutil.copytree(ROOT / "deploy/examples/node", self._folder, ignore=leave_out)
        install = ["npm", "install", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(install, cwd=self._folder, check=True, timeout=120)

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
