"""deploy/Dockerfile, built by the engine on a base of Debian's packages, and its containers."""

import json
import re

import pytest

from tests.deploy.engine.project import wait_for
from tests.support.docker import Engine

# The first of these tests builds all images, which takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(1800)

CONFINED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true")


def test_layers_are_the_base_the_environment_and_the_health_check(engine: Engine) -> None:
    layers = engine.docker(
        "history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", "flow-run-worker"
    )
    filled = [line.split(" ", 1) for line in layers.splitlines() if not line.startswith("0 ")]
    health, environment, _ = filled
    assert "/opt/flow-run-worker" in environment[1]
    assert "/usr/local/bin/health" in health[1]
    assert int(environment[0]) < 100e6, "deploy/README.md states its size"


@pytest.mark.parametrize(
    "command",
    [
        ("topology", "show"),
        # The exporter for traces is installed.
        ("python", "-c", "import opentelemetry.exporter.otlp.proto.http.trace_exporter"),
        ("sh", "-c", "! command -v pip || ! pip --version | grep /opt/flow-run-worker"),
        # The health check's shell.
        ("sh", "-c", "test $(id -u):$(id -g) = 10001:10001 && command -v bash"),
    ],
)
def test_image_runs_a_command(engine: Engine, command: tuple[str, ...]) -> None:
    program, *arguments = command
    entry = () if program == "topology" else ("--entrypoint", program)
    engine.docker("run", "--rm", *CONFINED, *entry, "flow-run-worker", *(arguments if entry else command))


def test_image_is_healthy_by_itself_and_ends_by_docker_stop(engine: Engine) -> None:
    """No broker answers: it lives, is not ready, and ends by SIGTERM as process 1."""
    # The health check must ignore a proxy.
    settings = ("--env", "WORKER_AMQP_URL=amqp://127.0.0.1:1/", "--env", "http_proxy=http://127.0.0.1:9")
    once = ("--env", "WORKER_DATABASE_URL=postgresql+asyncpg://nobody@127.0.0.1:1/none")
    container = engine.docker("run", "--detach", *CONFINED, *settings, *once, "flow-run-worker").strip()

    def state(word: str) -> str:
        return engine.docker("inspect", "--format", f"{{{{.State.{word}}}}}", container).strip()

    wait_for(lambda: state("Health.Status") == "healthy", "the image's own health check")
    assert engine.run("exec", container, "health", "readyz").returncode == 1
    assert engine.run("exec", container, "health", "nothing").returncode == 1
    assert "Read-only file system" in engine.run("exec", container, "touch", "/tmp/written").stderr
    status = engine.docker("exec", container, "cat", "/proc/1/status")
    assert re.search(r"^Name:\s+flow-run-worker$", status, re.MULTILINE)
    assert re.search(r"^Uid:(\s+10001){4}$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    engine.docker("stop", "--time", "45", container)
    assert state("ExitCode") == "0"
    log = engine.docker("logs", container)
    assert all(json.loads(line) for line in log.splitlines()), log


def test_health_check_fails_where_nothing_answers(engine: Engine) -> None:
    done = engine.run("run", "--rm", *CONFINED, "--entrypoint", "health", "flow-run-worker", "livez")
    assert done.returncode == 1
