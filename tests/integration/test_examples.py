"""The examples for producers in other languages do what they say, where their runtime is on the machine."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, StartWorker
from tests.database import fetch_runs

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


@pytest.mark.skipif(not shutil.which("npm"), reason="no Node.js here")
async def test_node_producer_prints_the_record(
    start_worker: StartWorker, sqlite_url: str, amqp_url: str, queue: str, tmp_path: Path
) -> None:
    example = tmp_path / "node"
    shutil.copytree(ROOT / "deploy/examples/node", example, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=example, check=True, timeout=120)
    start_worker(sqlite_url)

    def create(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["node", "create.mjs", *arguments],
            cwd=example,
            env={**os.environ, "WORKER_AMQP_URL": amqp_url, "WORKER_QUEUE": queue},
            capture_output=True,
            text=True,
            timeout=60,
        )

    created, existing, refused = [
        await asyncio.to_thread(create, *arguments) for arguments in ([FLOW_ID, "k"], [FLOW_ID, "k"], ["no-uuid"])
    ]
    assert created.returncode == 0, created.stderr
    status, _, record = created.stdout.partition("\n")
    assert status == "201 flow_run"
    (run,) = await fetch_runs(sqlite_url)
    assert json.loads(record)["id"] == run["id"]
    assert existing.stdout.startswith("200 flow_run")
    assert refused.returncode == 1
    assert refused.stdout.startswith("422 error")
