"""The engine, and the services of docker-compose.yml on it."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.deploy.engine.project import Project
from tests.support.docker import Engine, EngineMissing


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine with the images of docker-compose.yml."""
    with ExitStack() as stack:
        try:
            engine = stack.enter_context(Engine())
            engine.build()
        except EngineMissing as why:
            pytest.skip(f"no engine is started here: {why}")
        yield engine


@pytest.fixture(autouse=True)
def network(engine: Engine) -> Iterator[None]:
    """Each test runs in the engine's network, where the ports are published on loopback."""
    with engine.network():
        yield


@pytest.fixture(scope="session")
def project(engine: Engine) -> Project:
    """All services but Grafana, whose image is not to be had."""
    project = Project(engine)
    project.compose("up", "--build", "--wait")
    project.compose("--profile", "prefect", "up", "--wait")
    project.compose("--profile", "plain", "up", "--wait")
    project.compose("--profile", "monitoring", "up", "--wait", "prometheus")
    return project
