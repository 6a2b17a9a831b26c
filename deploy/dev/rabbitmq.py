"""A RabbitMQ node of our own: own ports, own folder, own name, own port mapper; shares nothing with what else runs here."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from deploy.dev.processes import ServerFailed, ServerProcess, answers, free_ports

SERVER = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")


class RabbitMQ:
    """A private node, in a folder that goes with it.

    Attributes:
        url: where it listens; user and password are ``guest``.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
        self.port, distribution, port_mapper = free_ports(3)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self._config = self._folder / "rabbitmq.conf"
        self._config.write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "disk_free_limit.absolute = 50MB\n"
            "vm_memory_high_watermark.absolute = 2GB\n"
            "log.console.level = warning\n"
        )
        (self._folder / "enabled_plugins").write_text("[].\n")
        self._env = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(self._folder),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"private{self.port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self._config),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self._folder / "pid"),
            "RABBITMQ_DIST_PORT": str(distribution),
            "ERL_EPMD_PORT": str(port_mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        self._process: ServerProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the node, and wait until it takes connections.

        Raises:
            ServerFailed: it is not installed, or does not come up.
        """
        self._process = ServerProcess([executable()], self._folder / "output", env=self._env)
        self._process.wait_until(lambda: answers(self.port))

    def stop(self) -> None:
        """Stop the node as an operator does; its data stay."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """Kill the node; its data stay."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl``; returns what it prints."""
        command = Path(executable()).with_name("rabbitmqctl")
        done = subprocess.run([command, "-q", *arguments], env=self._env, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise ServerFailed(f"rabbitmqctl {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

    def close(self) -> None:
        """End the node and its port mapper, and remove the folder."""
        self.kill()
        self._end_port_mapper()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end_port_mapper(self) -> None:
        # The node starts its mapper as a daemon, outside the process group; it is known by our own port.
        wanted = f"ERL_EPMD_PORT={self._env['ERL_EPMD_PORT']}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = b"epmd" in (folder / "cmdline").read_bytes() and wanted in (folder / "environ").read_bytes()
            except OSError:
                continue
            if is_ours:
                os.kill(int(folder.name), signal.SIGTERM)


def executable() -> str:
    """The path of ``rabbitmq-server``: RABBITMQ_SERVER, or where it is installed.

    Raises:
        ServerFailed: it is not there.
    """
    for candidate in (os.environ.get("RABBITMQ_SERVER"), *SERVER):
        if candidate and (found := shutil.which(candidate)):
            return found
    raise ServerFailed("rabbitmq-server is not on this machine: 'make servers' says what to do")
