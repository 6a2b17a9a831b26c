"""Starts and ends a private server; knows no particular server."""

import os
import pwd
import random
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

# Below the range of ports for outgoing connections (Linux: from 32768, others: from 49152). A port
# in that range may be taken when a server restarts, even by a client that connects to it and so to
# itself.
PORTS = range(20000, 32768)


class ServerFailed(Exception):
    """A server did not come up; the message has the end of its log."""


class Server(ABC):
    """A server that runs while its context lasts."""

    @abstractmethod
    def start(self) -> None:
        """Start it, and wait until it takes connections."""

    @abstractmethod
    def close(self) -> None:
        """End it, and remove its files."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def free_ports(count: int) -> list[int]:
    """Free TCP ports on the loopback address, all different, which a server can reuse after a
    restart.
    """
    found: list[int] = []
    with ExitStack() as held:
        for port in random.sample(PORTS, len(PORTS)):
            candidate = held.enter_context(socket.socket())
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise ServerFailed("no free port")


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 180.0, every: float = 0.05) -> None:
    """Wait for a condition, tested after each pause of ``every`` seconds; raises ServerFailed if it
    does not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailed(f"{what}: not within {seconds:g} seconds")
        time.sleep(every)


class ServerProcess:
    """A process in its own process group with its children, so that exactly these can be ended.

    It also ends when this process ends without having stopped it.

    Args:
        command: the program and its arguments.
        log: its output is appended here.
        env: its whole environment.
        user: who runs it, with that user's group alone; None for us.
        orderly: the signal for an orderly end.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str],
        user: str | None = None,
        orderly: int = signal.SIGTERM,
    ) -> None:
        self._log = log
        self._orderly = orderly
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
                start_new_session=True,
            )
        # The pipe closes however we end. (Linux could signal our end to the server itself, but that
        # follows the thread that started it.)
        self._lifeline = subprocess.Popen(
            ["sh", "-c", f"read -r _; kill -{int(orderly)} -{self._process.pid}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int:
        """Wait for its end; returns the exit code. It is killed after this many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self._cut_lifeline()
        return self._process.returncode

    def wait_until(self, condition: Callable[[], bool], seconds: float = 180.0) -> None:
        """Wait until the server is ready; raises ServerFailed with its log if it ends before."""

        def ready() -> bool:
            if self._process.poll() is not None:
                raise ServerFailed(f"ended with {self._process.returncode}:\n{self.log_tail()}")
            return condition()

        try:
            wait_until(ready, str(self._log), seconds)
        except BaseException:
            self.kill()
            raise

    def log_tail(self) -> str:
        """The last lines of its output."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def stop(self, number: int | None = None, seconds: float = 30.0) -> None:
        """Ask it to end (by the orderly signal or another), and wait; it is killed after this many
        seconds.
        """
        self._signal(self._orderly if number is None else number)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._cut_lifeline()

    def kill(self) -> None:
        """End it and its children at once."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._cut_lifeline()

    def _cut_lifeline(self) -> None:
        """The process's number may soon be another's."""
        self._lifeline.kill()
        self._lifeline.communicate()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            self._process.poll()
