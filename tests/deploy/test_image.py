"""deploy/Dockerfile, built by Buildah. The image runs without rights on a read-only file system.

There is no registry, so the base image is made of Debian's packages (``tests/support/image.py``).
"""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.command import command
from tests.support.container import Container, Image, Rights
from tests.support.image import Builder
from tests.support.processes import free_ports, wait_until
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import ROOT

# The first of these tests makes the base image, which takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(1800)

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
CONFINED = Rights(read_only=True, drop_capabilities=True, no_new_privileges=True)


def test_layers_are_the_base_the_environment_and_the_health_check(builder: Builder) -> None:
    _, environment, health = builder.layers()
    assert "/opt/flow-run-worker" in environment.instruction
    assert "/usr/local/bin/health" in health.instruction
    assert environment.size < 100e6, "deploy/README.md states its size"


@pytest.mark.parametrize(
    "arguments",
    [
        ("flow-run-worker", "topology", "show"),
        # The exporter for traces is installed.
        ("python", "-c", "import opentelemetry.exporter.otlp.proto.http.trace_exporter"),
        ("sh", "-c", "! command -v pip || ! pip --version | grep /opt/flow-run-worker"),
        # The health check's shell.
        ("sh", "-c", "test $(id -u):$(id -g) = 10001:10001 && command -v bash"),
    ],
)
def test_builder_itself_runs_a_command(builder: Builder, arguments: tuple[str, ...]) -> None:
    done = builder.run(*arguments)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def worker(
    image: Image, rabbitmq: RabbitMQ, postgresql_url: str, queue: str
) -> Iterator[tuple[Container, int]]:
    (port,) = free_ports(1)
    environment = {
        # The only setting that differs from the image's, as it shares this machine's network.
        "WORKER_HTTP_HOST": "127.0.0.1",
        "WORKER_HTTP_PORT": str(port),
        "WORKER_AMQP_URL": rabbitmq.url,
        "WORKER_DATABASE_URL": postgresql_url,
        "WORKER_QUEUE": queue,
        "WORKER_MIGRATE": "true",
        # The health check must ignore a proxy.
        "http_proxy": "http://127.0.0.1:9",
    }
    container = Container("worker", image, None, environment=environment, rights=CONFINED)
    yield container, port
    container.close()


async def test_image_serves_with_no_rights_and_ends_by_sigterm(
    worker: tuple[Container, int], image: Image, rabbitmq: RabbitMQ, queue: str
) -> None:
    container, port = worker

    def healthy() -> bool:
        assert container.code is None, container.output
        return container.run(image.healthcheck).returncode == 0

    wait_until(healthy, "the image's health check")
    ready = image.healthcheck[0], "readyz"
    wait_until(lambda: container.run(ready).returncode == 0, "/readyz")
    assert container.run((image.healthcheck[0], "nothing")).returncode == 1
    for path in ("livez", "readyz"):
        assert httpx.get(f"http://127.0.0.1:{port}/{path}", timeout=60).status_code == 200

    status = container.status()
    assert set(status["Uid"].split()) == {"10001"}
    assert int(status["CapBnd"], 16) == 0
    written = container.run(["touch", "/tmp/written"])
    assert "Read-only file system" in written.stderr

    done = await command("create", "--flow-id", FLOW_ID, amqp_url=rabbitmq.url, queue=queue)
    assert done.code == 0, done.err
    assert json.loads(done.out)["flow_id"] == FLOW_ID
    log = [json.loads(line) for line in container.output.splitlines()]
    assert {"serving"} <= {line["event"] for line in log}

    assert container.stop() == 0, container.output
    assert container.run(image.healthcheck).returncode != 0


def test_health_check_fails_where_nothing_answers(image: Image) -> None:
    (port,) = free_ports(1)
    nowhere = {"WORKER_HTTP_PORT": str(port)}
    container = Container(
        "nothing", image, None, entrypoint=image.healthcheck, environment=nowhere, rights=CONFINED
    )
    try:
        wait_until(lambda: container.code is not None, "the end of the health check")
        assert container.code == 1
    finally:
        container.close()


def test_build_sees_no_more_than_it_copies() -> None:
    """A file that .dockerignore excludes can't be copied. One that it admits and nothing copies
    only slows the build.
    """
    copied = {
        name
        for line in (ROOT / "deploy/Dockerfile").read_text().splitlines()
        if line.startswith("COPY") and "--from" not in line
        for name in line.split()[1:-1]
    }
    admitted = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert {next(path for path in admitted if Path(name).is_relative_to(path)) for name in copied} == admitted
