"""Starting and ending a server that belongs to us alone; knows no particular server."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class ServerFailed(Exception):
    """A server did not come up; the message has the end of its log."""


def free_ports(count: int) -> list[int]:
    """Free TCP ports on the loopback address, different ones."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for a condition; raises ServerFailed when it does not come in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailed(f"{what}: not within {seconds:g} seconds")
        time.sleep(0.05)


class ServerProcess:
    """A process with its children in a group of their own, so that all of it can be ended and nothing else."""

    def __init__(self, command: Sequence[str], log: Path, *, env: Mapping[str, str], user: str | None = None) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                user=user,
                start_new_session=True,
            )

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until the server is ready; raises ServerFailed with its log when it ends before."""

        def ready() -> bool:
            if self._process.poll() is not None:
                raise ServerFailed(f"ended with {self._process.returncode}:\n{self.log_tail()}")
            return condition()

        try:
            wait_until(ready, str(self._log), seconds)
        except ServerFailed:
            self.kill()
            raise

    def log_tail(self) -> str:
        """The last lines that it printed."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def stop(self, number: int = signal.SIGTERM, seconds: float = 30.0) -> None:
        """Ask it to end, and wait; after so many seconds it is killed."""
        self._signal(number)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it and its children at once."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            self._process.poll()
