"""The image's build steps and its commands, run by hand: no container engine is asked, and none
vouches for the layers.

The RUN, COPY and ENV lines are read from the Dockerfile itself. Its absolute paths are put below a
folder of this test's own; the base image is stood in for by a new virtual environment of a Python
that any user may run.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.processes import free_ports, wait_until
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import ROOT, WorkerProcess

DOCKERFILE = ROOT / "deploy/Dockerfile"
INSTALLED = "/opt/flow-run-worker"
# What the build stage writes to.
BUILD_PATHS = ("/opt/flow-run-worker", "/wheel")


@dataclass
class Stage:
    """One stage of the Dockerfile: its instructions in their order."""

    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [arguments for name, arguments in self.instructions if name == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    @property
    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for line in self.all("ENV") for pair in shlex.split(line))


def stages() -> list[Stage]:
    """The Dockerfile's stages."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    found: list[Stage] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, arguments = line.strip().partition(" ")
        if instruction == "FROM":
            found.append(Stage())
        elif instruction and found:
            found[-1].instructions.append((instruction, arguments.strip()))
    return found


@dataclass(frozen=True)
class Image:
    """What came out of the build steps.

    Attributes:
        folder: stands for the root of the file system.
        python: the base image's Python.
    """

    folder: Path
    python: Path

    @property
    def bin(self) -> Path:
        return self.folder / INSTALLED.lstrip("/") / "bin"


def _public_python() -> str | None:
    """A Python that any user may run, as one in root's home is not."""
    for candidate in (os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        command = [candidate, "-c", "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if (
                subprocess.run(command, user=_user(), capture_output=True, timeout=30, cwd="/").returncode
                == 0
            ):
                return candidate
        except OSError:
            continue
    return None


def _user() -> str | None:
    return "nobody" if os.getuid() == 0 else None


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The build stage, run step by step in a folder that other users can read."""
    python = _public_python()
    if python is None:
        pytest.skip("no Python 3.11 with venv that an unprivileged user may run")
    folder = Path(tempfile.mkdtemp(prefix="image-"))
    try:
        folder.chmod(0o755)
        yield _build(folder, python)
    finally:
        subprocess.run(["chmod", "-R", "u+w", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _build(folder: Path, python: str) -> Image:
    subprocess.run([python, "-m", "venv", folder / "base"], check=True, timeout=120)
    stage = stages()[0]
    source = folder / "source"
    source.mkdir()
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
        },
        **stage.environment,
        "PATH": f"{folder}/base/bin:{os.environ['PATH']}",
    }
    # The base image has a newer pip than Debian's venv brings, and the download cache of this
    # machine is as good as none.
    del environment["PIP_NO_CACHE_DIR"]
    context = _context(folder / "context")
    for instruction, arguments in stage.instructions:
        if instruction == "COPY":
            *names, target = arguments.split()
            for name in names:
                # As the builder does: a target with a slash at its end is a folder.
                destination = source / target / Path(name).name if target.endswith("/") else source / target
                destination.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if (context / name).is_dir() else shutil.copy)(context / name, destination)
            if "worker" in names:
                subprocess.run(["chmod", "-R", "a-w", source], check=True)
        elif instruction == "RUN":
            for path in BUILD_PATHS:
                arguments = re.sub(rf"(?<!\S){path}", f"{folder}{path}", arguments)
            done = subprocess.run(
                arguments,
                shell=True,
                cwd=source,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, f"RUN {arguments}\n{done.stdout}\n{done.stderr}"
    return Image(folder, folder / "base/bin/python")


def _context(folder: Path) -> Path:
    """What .dockerignore lets into the build."""
    folder.mkdir()
    ignored, *lines = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert ignored == "*"
    for line in lines:
        if line.startswith("!"):
            path = ROOT / line[1:]
            if path.is_dir():
                shutil.copytree(
                    path, folder / line[1:], ignore=shutil.ignore_patterns("__pycache__", "*.py[co]")
                )
            else:
                shutil.copy(path, folder)
    return folder


def test_build_uses_hashes_and_only_what_was_admitted(image: Image) -> None:
    (wheel,) = (image.folder / "wheel").glob("*.whl")
    assert wheel.name.startswith("flow_run_worker-")
    done = subprocess.run(
        [image.bin / "flow-run-worker", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not (image.bin / "pip").exists()
    # Traces are in: the exporter can be imported.
    exporter = "import opentelemetry.exporter.otlp.proto.http.trace_exporter"
    subprocess.run([image.bin / "python", "-c", exporter], check=True, timeout=60)
    size = subprocess.run(
        ["du", "-sm", image.bin.parent], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert int(size.split()[0]) < 200, "deploy/README.md states its size"


def test_worker_runs_unprivileged_on_a_read_only_system_and_ends_cleanly(
    image: Image, rabbitmq: RabbitMQ, postgresql_url: str, queue: str, tmp_path: Path
) -> None:
    stage = stages()[-1]
    entrypoint = [*json.loads(stage.last("ENTRYPOINT")), *json.loads(stage.last("CMD"))]
    healthcheck = json.loads(stage.last("HEALTHCHECK").partition(" CMD ")[2])
    (port,) = free_ports(1)
    workdir = image.folder / stage.last("WORKDIR").lstrip("/")
    assert stage.environment["HOME"] == stage.last("WORKDIR")
    environment = {
        **stage.environment,
        "PATH": f"{image.bin}:{os.environ['PATH']}",
        "HOME": str(workdir),
        "PYTHONPATH": "",
        # Of all that the image sets only this is changed: servers of tests listen on loopback.
        "WORKER_HTTP_HOST": "127.0.0.1",
        "WORKER_HTTP_PORT": str(port),
        "WORKER_AMQP_URL": rabbitmq.url,
        "WORKER_DATABASE_URL": postgresql_url,
        "WORKER_QUEUE": queue,
        "WORKER_MIGRATE": "true",
        "http_proxy": "http://127.0.0.1:9",
    }

    def healthy() -> bool:
        return subprocess.run(healthcheck, env=environment, capture_output=True, timeout=60).returncode == 0

    assert not healthy()
    confined, lacking = _confined(["env", f"--chdir={workdir}", *entrypoint])
    worker = WorkerProcess(tmp_path / "worker.log", environment, confined)
    try:
        worker.wait_until_logged("serving")
        wait_until(healthy, "the health check")
        line = json.loads(worker.output.splitlines()[0])
        assert line["level"] == "info"
        if os.getuid() == 0:
            status = Path(f"/proc/{worker.process.pid}/status").read_text()
            assert not re.search(r"^Uid:\t0", status, re.MULTILINE)
        assert worker.terminate() == 0, worker.output
        assert not healthy()
    finally:
        worker.kill()
    if lacking:
        pytest.skip(f"it ran and ended cleanly, but {lacking}")


def _confined(command: list[str]) -> tuple[list[str], str]:
    """The command as ``docker run --read-only --user 10001`` runs it, and what of that this machine
    doesn't let us.

    The worker stays the process that we started, so that signals reach it directly.
    """
    if os.getuid() != 0:
        return command, "who isn't root can't take away what root could"
    unprivileged = [
        "setpriv",
        "--reuid=nobody",
        "--regid=nogroup",
        "--clear-groups",
        "--no-new-privs",
        "--bounding-set=-all",
    ]
    read_only = 'mount --make-rprivate / && mount -o remount,bind,ro / && exec "$@"'
    confined = ["unshare", "--mount", "sh", "-c", read_only, "sh", *unprivileged]
    probe = [*confined, "sh", "-c", "! touch /tmp/written 2>/dev/null"]
    if subprocess.run(probe, capture_output=True, timeout=30).returncode == 0:
        return [*confined, *command], ""
    return [*unprivileged, *command], "on a file system that it could write to"


def test_image_is_not_root_and_signals_reach_the_worker() -> None:
    final = stages()[-1]
    user, _, group = final.last("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert json.loads(final.last("ENTRYPOINT")) == ["flow-run-worker"]
    assert final.environment["PATH"].startswith(f"{INSTALLED}/bin:")
    assert not final.all("RUN")
    assert final.environment["WORKER_HTTP_PORT"] in final.last("EXPOSE")
