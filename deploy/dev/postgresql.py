"""A PostgreSQL cluster of our own: own port, own folder; shares nothing with what else runs here."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from itertools import count
from pathlib import Path
from typing import Self

from deploy.dev.processes import ServerFailed, ServerProcess, answers, free_ports


class PostgreSQL:
    """A private cluster, in a folder that goes with it. Its user is ``postgres``, without a password, on loopback only."""

    def __init__(self) -> None:
        self._bin = executables()
        self._folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        (self.port,) = free_ports(1)
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        self._env = {"PATH": os.environ.get("PATH", ""), "HOME": str(self._folder), "LANG": "C.UTF-8"}
        self._numbers = count(1)
        self._process: ServerProcess | None = None
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def start(self, *options: str) -> None:
        """Start the cluster, and wait until it takes connections; ``options`` are for ``postgres``, as ``-c fsync=on``."""
        self._process = ServerProcess(
            [
                str(self._bin / "postgres"),
                "-D",
                str(self._data),
                *("-c", "listen_addresses=127.0.0.1", "-c", f"port={self.port}"),
                *("-c", f"unix_socket_directories={self._folder}", *options),
            ],
            self._folder / "output",
            env=self._env,
            user=self._user,
        )
        self._process.wait_until(lambda: answers(self.port) and self._accepts())

    def stop(self) -> None:
        """Stop the cluster as an operator does (fast: connections are closed); its data stay."""
        if self._process is not None:
            self._process.stop(signal.SIGINT)
            self._process = None

    def kill(self) -> None:
        """Kill the cluster; its data stay, and are recovered at the next start."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def create_database(self) -> str:
        """Make an empty database; returns its URL."""
        name = f"test_{next(self._numbers)}"
        self._run("createdb", "-h", str(self._folder), "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        """End the cluster and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accepts(self) -> bool:
        try:
            self._run("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port))
        except ServerFailed:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            env=self._env,
            cwd=self._folder,
            user=self._user,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise ServerFailed(f"{program}: {done.stderr or done.stdout}")


def executables() -> Path:
    """The folder of PostgreSQL's programs: POSTGRESQL_BIN, or the newest that is installed.

    Raises:
        ServerFailed: there is none.
    """
    if folder := os.environ.get("POSTGRESQL_BIN"):
        return Path(folder)
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if installed:
        return installed[-1].parent
    if found := shutil.which("initdb"):
        return Path(found).parent
    raise ServerFailed("PostgreSQL is not on this machine: 'make servers' says what to do")
