"""The Python code on the pages runs unchanged and passes a type checker."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.producer import Producer
from tests.support.published_states import Teller
from tests.support.worker_process import ROOT
from worker.client.testing.sync import FakeFlowRunClient

PAGES = ("README.md", "deploy/docs/python.md", "deploy/docs/waiting.md")
URL = '"amqp://guest:guest@localhost:5672/"'

BLOCKS = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    # FastAPI is in another environment: tests/support/client_programs.py runs this one.
    if "fastapi" not in block
]
# Programs of the README start a deployment; tests/support/demo_prefect.py does so for real.
(README,) = (block for page, block in BLOCKS if page == "README.md")
PROGRAMS = [(page, block) for page, block in BLOCKS if "print" in block and "wait=" not in block]


def test_the_readme_starts_a_deployment(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeFlowRunClient()
    fake.deployment("invoice/nightly", ends="COMPLETED")
    with fake.intercept():
        for _ in range(2):
            exec(README, {})
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert re.fullmatch(r"[0-9a-f-]{36} Completed", first)


@pytest.mark.parametrize(("page", "block"), PROGRAMS, ids=[page for page, _ in PROGRAMS])
async def test_it_runs(page: str, block: str, shared_worker: Producer, amqp_url: str) -> None:
    assert URL in block
    program = block.replace(URL, f'"{amqp_url}", queue="{shared_worker.queue}"')
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await running.communicate()
    assert running.returncode == 0
    created, *many = printed.decode().splitlines()
    assert re.fullmatch(r"[0-9a-f-]{36} (Pending|Scheduled)", created)
    assert sorted(int(line.split()[0]) for line in many) == list(range(1000))
    assert {line.split()[1] for line in many} == {"201"}


async def test_the_page_about_waiting_runs(amqp_url: str, queue: str) -> None:
    (block,) = (block for page, block in BLOCKS if page.endswith("waiting.md") and "print" in block)
    program = block.replace(URL, f'"{amqp_url}", queue="{queue}"')
    async with Teller(amqp_url, queue) as teller:
        running = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program), cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        while not teller.reads:
            await asyncio.sleep(0.05)
        (run_id,) = teller.runs
        await teller.tell(run_id, "FAILED")
        printed, _ = await running.communicate()
    assert (running.returncode, printed.decode()) == (0, f"{run_id} Failed\n")


def test_the_pages_tests_pass(tmp_path: Path) -> None:
    (block,) = (block for _, block in BLOCKS if "fake_flow_runs" in block)
    (tmp_path / "test_page.py").write_text(block)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["worker.pytest_plugin"]\n')
    tests = [sys.executable, "-m", "pytest", "-q", "-o", "asyncio_mode=auto", str(tmp_path)]
    done = subprocess.run(tests, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "2 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_types_are_right(page: str, block: str, tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text(block)
    check = [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "page.py")]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
