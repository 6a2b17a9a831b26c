"""A private PostgreSQL cluster with its own port and folder, separate from any other."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from itertools import count
from pathlib import Path

from tests.support.processes import Server, ServerFailed, ServerProcess, answers, free_ports


class PostgreSQL(Server):
    """A private cluster in a temporary folder. Its user is ``postgres``, without a password, on
    loopback only.
    """

    def __init__(self) -> None:
        self._bin = executables()
        (self.port,) = free_ports(1)
        # PostgreSQL refuses to run as root.
        self._user = _unprivileged_user() if os.getuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        if self._user:
            shutil.chown(self._folder, self._user)
        self._env = {"PATH": os.environ.get("PATH", ""), "HOME": str(self._folder), "LANG": "C.UTF-8"}
        self._numbers = count(1)
        self._process: ServerProcess | None = None

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def start(self, *options: str) -> None:
        """Start the cluster, and wait until it takes connections; ``options`` are for ``postgres``,
        as ``-c fsync=off``.

        Raises:
            ServerFailed: it does not come up.
        """
        if not self._data.exists():
            self._run(
                "initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"
            )
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
            orderly=signal.SIGINT,
        )
        self._process.wait_until(lambda: answers(self.port) and self._accepts())

    def stop(self) -> None:
        """Stop the cluster as an operator does (fast: connections are closed); its data stay."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """End the cluster as a crash does: nothing is flushed. Its data stay, and are recovered at
        the next start.
        """
        if self._process is not None:
            # PostgreSQL's immediate shutdown. SIGKILL would leave its children, which are outside
            # its process group and hold its shared memory until their statements end, so the next
            # start would fail.
            self._process.stop(signal.SIGQUIT)
            self._process = None

    def start_as_standby(self) -> None:
        """Start it as a standby without a primary: it is read-only until ``pg_promote()``."""
        signal_file = self._data / "standby.signal"
        signal_file.touch()
        if self._user:
            shutil.chown(signal_file, self._user)
        self.start()

    def create_database(self, folder: Path | None = None) -> str:
        """Make an empty database, in an empty folder if one is given; returns its URL."""
        name = f"test_{next(self._numbers)}"
        where = ("-h", str(self._folder), "-p", str(self.port), "-U", "postgres")
        if folder is None:
            self._run("createdb", *where, name)
        else:
            if self._user:
                shutil.chown(folder, self._user)
            self._run("psql", *where, "-c", f"CREATE TABLESPACE {name} LOCATION '{folder}'")
            self._run("createdb", *where, "-D", name, name)
        return self.url(name)

    def url(self, database: str) -> str:
        """The URL of a database."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{database}"

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
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise ServerFailed(f"{program}: {done.stderr or done.stdout}")


def _unprivileged_user() -> str:
    """Debian's user for PostgreSQL, or ``nobody``."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise ServerFailed("PostgreSQL doesn't run as root, and there is neither a user 'postgres' nor 'nobody'")


def executables() -> Path:
    """The folder of PostgreSQL's programs: POSTGRESQL_BIN, or the newest installed.

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
