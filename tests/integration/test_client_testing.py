"""The fake, as a producer uses it: in an environment with the client's distribution and its extra
``[testing]`` alone. No server runs.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.worker_process import ROOT

EXAMPLE = ROOT / "deploy" / "examples" / "pytest"
LOADED = "import json, sys, flow_run_worker.client.testing.sync; print(json.dumps(sorted(sys.modules)))"
# A conftest.py that notes what is loaded at the end of pytest's own start.
AT_START = """
import sys

def pytest_sessionstart(session):
    print(sorted(name for name in sys.modules if name.startswith(("flow_run_worker", "aio_pika"))))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    environment = tmp_path_factory.mktemp("producer") / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)
    python = environment / "bin" / "python"
    what = [f"{ROOT / 'deploy/client'}[testing]", "pytest", "pytest-asyncio"]
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    subprocess.run(pip, check=True, timeout=300)
    return python


def run(python: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run([python, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_examples_tests_pass(python: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    (tmp_path / "worker.py").write_text("")  # a module of the producer
    assert "11 passed" in run(python, tmp_path, "-m", "pytest", "-q", "-W", "error")


def test_the_examples_types_are_right(python: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    check = ["-m", "mypy", "--strict", "--no-incremental", f"--python-executable={python}", "test_orders.py"]
    assert run(Path(sys.executable), tmp_path, *check).startswith("Success")


def test_loading_it_takes_no_package_of_a_server(python: Path, tmp_path: Path) -> None:
    modules = json.loads(run(python, tmp_path, "-c", LOADED))
    assert {name.partition(".")[0] for name in modules}.isdisjoint(
        {"aiohttp", "aiosqlite", "alembic", "asyncpg", "jinja2", "pendulum", "prefect", "prometheus_client"}
        | {"pydantic_settings", "pytest", "rich", "sqlalchemy", "structlog", "typer", "uvloop", "worker"}
    )


def test_pytest_starts_without_loading_the_client(python: Path, tmp_path: Path) -> None:
    """Each run of pytest in such an environment loads the plugin, with or without a fake in it."""
    (tmp_path / "conftest.py").write_text(AT_START)
    (tmp_path / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    printed = run(python, tmp_path, "-m", "pytest", "-q", "-s")
    assert "['flow_run_worker', 'flow_run_worker.pytest_plugin']" in printed
