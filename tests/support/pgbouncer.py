"""A private PgBouncer before a PostgreSQL cluster, separate from others on this machine."""

import os
import shutil
import tempfile
from pathlib import Path

from tests.support.processes import Server, ServerFailed, ServerProcess, answers, free_ports

# Debian's place for it is in root's path only.
SBIN = "/usr/sbin:/usr/local/sbin"

CONFIGURATION = """\
[databases]
* = host=127.0.0.1 port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {pool_mode}
default_pool_size = {pool_size}
{settings}
"""


class PgBouncer(Server):
    """A private pooler for the sessions of a cluster.

    Args:
        port: the cluster's.
        pool_mode: for how long a session is lent: ``transaction`` or ``session``.
        pool_size: sessions for each database and user.
        settings: more lines of its configuration.
    """

    def __init__(
        self, port: int, *, pool_mode: str = "transaction", pool_size: int = 3, settings: str = ""
    ) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:{SBIN}")
        if program is None:
            raise ServerFailed("PgBouncer is not on this machine: 'make servers' says what to do")
        (self.port,) = free_ports(1)
        self._folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        self._folder.chmod(0o755)
        users, configuration = self._folder / "users", self._folder / "pgbouncer.ini"
        users.write_text('"postgres" ""\n')
        configuration.write_text(
            CONFIGURATION.format(
                port=port,
                listen_port=self.port,
                users=users,
                pool_mode=pool_mode,
                pool_size=pool_size,
                settings=settings,
            )
        )
        # It refuses to run as root.
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        self._command = [program, *user, str(configuration)]
        self._process: ServerProcess | None = None

    def start(self) -> None:
        """Start it, and wait until it takes connections.

        Raises:
            ServerFailed: it does not come up.
        """
        self._process = ServerProcess(self._command, self._folder / "output", env={})
        self._process.wait_until(lambda: answers(self.port))

    def close(self) -> None:
        """End it and remove its folder."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)
