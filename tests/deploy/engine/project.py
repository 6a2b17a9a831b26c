"""The services of docker-compose.yml on an engine."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

from tests.support.docker import Engine
from tests.support.processes import wait_until


class Project:
    """A Compose project of the file.

    Args:
        name: of the project; Compose's own choice by default.
    """

    def __init__(self, engine: Engine, name: str = "flow-run-worker") -> None:
        self.engine = engine
        self._of = ("--project-name", name)

    def compose(self, *arguments: str, **environment: str) -> str:
        """A command of ``docker compose`` that has to succeed; returns its output."""
        return self.engine.docker("compose", *self._of, *arguments, **environment)

    def config(self, **environment: str) -> dict[str, Any]:
        """The file as Compose reads it."""
        printed = self.compose("--profile", "*", "config", "--format", "json", **environment)
        read: dict[str, Any] = json.loads(printed)
        return read

    def containers(self, service: str) -> list[str]:
        """Its containers, those that have ended too."""
        return self.compose("--profile", "*", "ps", "--all", "--quiet", service).split()

    def inspect(self, container: str) -> dict[str, Any]:
        """The description of a container by ``docker inspect``."""
        (found,) = json.loads(self.engine.docker("inspect", container))
        return dict(found)

    def inside(self, container: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one more command in a container."""
        return self.engine.run("exec", container, *command)

    def ready(self, container: str) -> bool:
        """Whether a worker serves."""
        return self.inside(container, "health", "readyz").returncode == 0

    def sql(self, query: str, database: str = "flow_runs") -> str:
        """The result of a query, as the superuser."""
        (postgres,) = self.containers("postgres")
        command = ["psql", "--username", "postgres", "--dbname", database, "--no-align", "--tuples-only"]
        done = self.inside(postgres, *command, "--command", query)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def scale(self, count: int) -> list[str]:
        """Set the number of workers; returns their containers, once all are ready."""
        self.compose("up", "--wait", "--no-recreate", "--scale", f"worker={count}", "worker")
        workers = self.containers("worker")
        wait_for(lambda: all(map(self.ready, workers)), "all workers ready")
        return workers


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition that costs a command each time."""
    wait_until(condition, what, every=0.5)
