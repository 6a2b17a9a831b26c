"""A real Prefect server: its own environment, made once, and a process on a given database."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.support import packages
from tests.support.processes import ServerProcess, free_ports

# The reference version. To change it, edit this line and run `make reference`.
VERSION = "3.9.1"
# Older versions with other migrations, whose databases the tests write to.
OLDER_VERSIONS = ("3.8.8", "3.4.11")
ROOT = Path(__file__).parent.parent.parent


class PrefectMissing(Exception):
    """Prefect cannot be installed here; the message says why."""


def requirements(version: str) -> Path:
    """The requirements file of a version."""
    return Path(__file__).with_name(f"requirements-{version}.txt")


def install(version: str) -> Path:
    """The folder of its programs. It is made at the first call, and again when the requirements
    change.

    Raises:
        PrefectMissing: the installation fails.
    """
    folder = ROOT / ".cache" / f"prefect-{version}"
    try:
        packages.install_once(folder, requirements(version), environment=True)
    except packages.InstallFailed as failed:
        raise PrefectMissing(str(failed)) from failed
    return folder / "bin"


def prefect_server(database_url: str) -> "PrefectServer":
    """A server of the reference version, not started. The test is skipped or fails if it can't be
    installed.
    """
    try:
        return PrefectServer(database_url)
    except PrefectMissing as missing:
        if os.environ.get("WORKER_TEST_WITHOUT_PREFECT"):
            pytest.skip(f"Prefect cannot be installed here: {missing}")
        pytest.fail(
            f"Prefect cannot be installed here; to do without set WORKER_TEST_WITHOUT_PREFECT=1.\n{missing}"
        )


class PrefectServer:
    """An unmodified Prefect server on a database: its API at :attr:`api`, its pages at :attr:`url`
    if they are wanted.
    """

    def __init__(self, database_url: str, version: str = VERSION, *, ui: bool = False) -> None:
        self._bin = install(version)
        self.database_url = database_url
        self._folder = Path(tempfile.mkdtemp(prefix="prefect-"))
        (port,) = free_ports(1)
        self._port = port
        self.url = f"http://127.0.0.1:{port}"
        self.api = f"{self.url}/api"
        self.environment = {
            "PATH": f"{self._bin}:{os.environ.get('PATH', '')}",
            "HOME": str(self._folder),
            "PREFECT_HOME": str(self._folder),
            "PREFECT_API_URL": self.api,
            "PREFECT_API_DATABASE_CONNECTION_URL": database_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # Prefect would move overdue runs to another state while the tests compare them.
            "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
            # Longer than any test: a connection that closes during a request is an error.
            "PREFECT_SERVER_API_KEEPALIVE_TIMEOUT": "600",
            "PREFECT_SERVER_UI_ENABLED": str(ui).lower(),
            "DO_NOT_TRACK": "1",
        }
        self._process: ServerProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, and wait until it is healthy."""
        command = [
            self.program("prefect"),
            "server",
            "start",
            *([] if self.environment["PREFECT_SERVER_UI_ENABLED"] == "true" else ["--no-ui"]),
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port),
        ]
        self._process = ServerProcess(command, self._folder / "output", env=self.environment)
        self._process.wait_until(self._healthy, 120)

    def program(self, name: str) -> str:
        """The path of a program in its environment."""
        return str(self._bin / name)

    def stop(self) -> None:
        """Stop it. The database stays, and the server can be started again."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def log(self) -> str:
        """The log so far."""
        return (self._folder / "output").read_text()

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.api}/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False
