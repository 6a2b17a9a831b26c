"""The client installed alone, in the environment of a producer that has its own ``worker.py``."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.producer import Producer
from tests.support.worker_process import ROOT

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"

PRODUCER = """
import asyncio
import sys
from uuid import UUID

import worker
from flow_run_worker.client import FlowRunClient, InvalidFlowRun
from flow_run_worker.client.sync import FlowRunClient as BlockingClient
from flow_run_worker.contract.deployment_request import CreateFlowRunFromDeployment
from flow_run_worker.contract.request import CreateFlowRun

url, queue, flow_id = sys.argv[1:]


async def main() -> None:
    async with FlowRunClient(url, queue=queue) as client:
        run = await client.create_flow_run(flow_id, name=worker.NAME, state="SCHEDULED")
        print(run.name, run.state_type.value if run.state_type else None)


asyncio.run(main())
with BlockingClient(url, queue=queue) as client:
    outcomes = client.create_many(
        [CreateFlowRun(flow_id=UUID(flow_id)), CreateFlowRunFromDeployment(deployment_name="a/b")]
    )
    print(sorted(outcome.status for outcome in outcomes))
    try:
        client.create_flow_run("none")
    except InvalidFlowRun as refused:
        print(refused.reason)
"""

# Every module of the package but the fake's, and everything installed with it.
EVERYTHING = """
import importlib, importlib.metadata, json, pkgutil
import flow_run_worker

FAKE = tuple(f"flow_run_worker.{each}" for each in ("checks", "client.testing", "pytest_plugin", "runs"))


def failed(name):
    if not name.startswith(FAKE):
        raise


packages = pkgutil.walk_packages(flow_run_worker.__path__, "flow_run_worker.", onerror=failed)
modules = [each.name for each in packages if not each.name.startswith(FAKE)]
for name in modules:
    importlib.import_module(name)
print(json.dumps([modules, [each.name.lower() for each in importlib.metadata.distributions()]]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the client, installed from this clone."""
    environment = tmp_path_factory.mktemp("client") / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ROOT / "deploy/client"]
    subprocess.run(pip, check=True, timeout=300)
    return python


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "worker.py").write_text('NAME = "of the producer"\n')
    (tmp_path / "producer.py").write_text(PRODUCER)
    return tmp_path


async def test_producer_with_a_worker_py_of_its_own_gets_a_record(
    python: Path, folder: Path, shared_worker: Producer, amqp_url: str
) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [python, "producer.py", amqp_url, shared_worker.queue, FLOW_ID],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    created, statuses, refused = done.stdout.splitlines()
    assert created == "of the producer SCHEDULED"
    assert statuses == "[201, 404]"
    assert refused.startswith("body.flow_id: ")


def test_its_types_are_known(python: Path, folder: Path) -> None:
    """mypy checks a producer's program with them."""
    check = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", f"--python-executable={python}"]
    done = subprocess.run([*check, "producer.py"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("Success"), done.stdout
    wrong = PRODUCER.replace("name=worker.NAME", "name=5").replace("run.name,", "run.nam,")
    (folder / "producer.py").write_text(wrong)
    done = subprocess.run([*check, "producer.py"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert "[arg-type]" in done.stdout
    assert "[attr-defined]" in done.stdout


def test_it_brings_no_more_than_it_needs(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-c", EVERYTHING], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120
    )
    modules, distributions = json.loads(done.stdout)
    assert "flow_run_worker.client.sync" in modules
    assert not {"alembic", "asyncpg", "sqlalchemy", "uvloop", "rich"} & set(distributions)


def test_the_fake_names_its_extra(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-c", "import flow_run_worker.client.testing"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Install 'flow-run-worker-client[testing]'" in done.stderr.splitlines()[-1]


def test_a_time_that_only_the_worker_can_read_is_refused(python: Path, tmp_path: Path) -> None:
    """The worker reads more formats, with a library that the client lacks."""
    program = (
        "from pydantic import ValidationError\n"
        "from flow_run_worker.contract.state import StateDetails\n"
        "try:\n"
        "    StateDetails(scheduled_time='2026-W01')\n"
        "except ValidationError as refused:\n"
        "    print(refused.errors()[0]['msg'])\n"
    )
    done = subprocess.run(
        [python, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "value is not a valid datetime\n"
