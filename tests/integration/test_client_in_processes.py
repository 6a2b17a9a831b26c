"""The client in other people's processes, with their frameworks, on the oldest and a newer Python.

Each program counts its calls. The queue has exactly as many messages: one a call.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support import packages
from tests.support.processes import ServerProcess, answers, free_ports
from tests.support.producer import Producer
from tests.support.worker_process import ROOT

PYTHONS = ("3.11", "3.13")
# Warnings of the libraries, and of programs that don't close the client.
QUIET = ("-W", "ignore")


@pytest.fixture(scope="module", params=PYTHONS)
def python(request: pytest.FixtureRequest) -> Path:
    """A Python with the frameworks and with the client's libraries."""
    interpreter = installed(request.param)
    if interpreter is None:
        pytest.skip(f"Python {request.param} is not on this machine")
    folder = ROOT / ".cache" / f"frameworks-{request.param}"
    requirements = ROOT / "tests" / "support" / "frameworks.txt"
    packages.install_once(folder, requirements, environment=True, python=interpreter)
    return folder / "bin" / "python"


def installed(version: str) -> str | None:
    """The path of a Python: the one that runs the tests, or one on the search path, or pyenv's."""
    if version == "{}.{}".format(*sys.version_info):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python")]
    for path in map(str, filter(None, found)):
        if not subprocess.run([path, "-c", ""], capture_output=True, timeout=60).returncode:
            return path  # others are shims of pyenv without a version
    return None


@pytest.fixture
async def declared(producer: Producer) -> Producer:
    """A producer at a queue without a worker."""
    await producer.channel.declare_queue(producer.queue, auto_delete=True)
    return producer


@pytest.mark.parametrize(
    "programs",
    [
        ["fork", "loops", "closing_in_another_loop", "eager_tasks", "threads", "no_thread", "dropped"],
        ["the_end"],
        ["first_call_at_the_end"],
        ["gevent"],
        ["async_to_sync", "fastapi", "page"],
    ],
    ids=lambda programs: programs[0],
)
async def test_each_call_publishes_one_message(
    python: Path, declared: Producer, amqp_url: str, programs: list[str]
) -> None:
    command = [python, *QUIET, "-m", "tests.support.client_programs", amqp_url, declared.queue, *programs]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    counts = [int(line) for line in done.stdout.split()]
    assert len(counts) >= len(programs) - 1
    assert await declared.depth() == sum(counts)


@contextmanager
def running(python: Path, amqp_url: str, queue: str, log: Path, *command: str) -> Iterator[ServerProcess]:
    """A server that has to end on SIGTERM."""
    environment = {**os.environ, "AMQP_URL": amqp_url, "QUEUE": queue, "PYTHONPATH": str(ROOT)}
    server = ServerProcess([str(python), *QUIET, "-m", *command], log, env=environment)
    try:
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
async def test_gunicorn_that_forks_after_the_clients_use(
    python: Path, declared: Producer, amqp_url: str, tmp_path: Path, kind: str
) -> None:
    (port,) = free_ports(1)
    pages = ["/"] * 20 + ["/many"] * 4 + (["/async"] * 12 if kind == "gthread" else [])
    gunicorn = ["gunicorn", "--preload", "--workers=2", f"--worker-class={kind}", "--threads=4"]
    address = [f"--bind=127.0.0.1:{port}", "--timeout=300", "tests.support.client_wsgi:app"]
    with running(python, amqp_url, declared.queue, tmp_path / "log", *gunicorn, *address) as server:
        await asyncio.to_thread(server.wait_until, lambda: answers(port))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
            responses = await asyncio.gather(*(http.get(page) for page in pages))
    assert [each.status_code for each in responses] == [200] * len(pages)
    assert [each.text for each, page in zip(responses, pages, strict=True) if page == "/many"] == [
        "NoReply"
    ] * 4
    assert await declared.depth() == 1 + len(pages)


async def test_celery_that_forks_after_the_clients_use(
    python: Path, declared: Producer, amqp_url: str, tmp_path: Path
) -> None:
    module = "tests.support.client_celery"
    worker = ["celery", "--app", module, "worker", "--pool=prefork", "--concurrency=2", "--without-mingle"]
    with (
        running(python, amqp_url, declared.queue, tmp_path / "log", *worker),
        running(python, amqp_url, declared.queue, tmp_path / "sender", module),
    ):
        # Each of the two has used the client once; each task uses both clients.
        async with asyncio.timeout(300):
            while await declared.depth() < 2 + 4 * 2:
                await asyncio.sleep(0.05)
    assert await declared.depth() == 2 + 4 * 2
