"""Starts workers and commands as copies of one process that has imported their modules: importing
takes most of the CPU of a start. Each is then ``python -m worker`` in a process of its own.
"""

import gc
import importlib
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Self

ROOT = Path(__file__).parents[2]
# The imports of a worker until it serves, and of the commands. Not ``worker.cli``: it reads the
# terminal's width when it is imported.
IMPORTED = (
    "typer.rich_utils",
    "rich.padding",
    "rich.progress",
    "worker.service",
    "worker.client",
    "worker.operate.dead_letters",
    "worker.operate.doctor",
    "worker.operate.top",
    "worker.store.migrations",
    "alembic.command",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "uvloop",
)
REQUEST_BYTES = 2**17


class Fork:
    """A copy. It has the part of ``subprocess.Popen`` that tests use."""

    def __init__(self, pid: int, ended: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = ended

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self.returncode is None:
            try:
                # Stays readable, for another thread that waits.
                self.returncode = int(self._ended.recv(64, socket.MSG_DONTWAIT | socket.MSG_PEEK))
            except BlockingIOError:
                return None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once it has ended; raises ``TimeoutExpired`` after this many seconds."""
        waiting = select.poll()
        waiting.register(self._ended, select.POLLIN)
        waiting.poll(None if timeout is None else timeout * 1000)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Forks:
    """The process that is copied. It ends with this one."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forks", str(theirs.fileno())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    @classmethod
    @cache
    def shared(cls) -> Self:
        """The one of this process, started at the first call."""
        return cls()

    def start(
        self, *arguments: str, folder: Path, environment: Mapping[str, str], files: Sequence[IO[bytes]]
    ) -> Fork:
        """Start ``python -m worker`` with these arguments.

        Args:
            folder: in which it runs.
            environment: all of it.
            files: its standard input, output and error.
        """
        ended, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            request = json.dumps([arguments, str(folder), dict(environment), _umask()]).encode()
            passed = [*(file.fileno() for file in files), theirs.fileno()]
            socket.send_fds(self._control, [request], passed)
        if not (pid := ended.recv(64)):
            raise RuntimeError("the process that is copied has ended")
        return Fork(int(pid), ended)


def _umask() -> int:
    """This process's mask, read without changing it for a moment."""
    (mask,) = re.findall(r"^Umask:\s+(\d+)", Path("/proc/self/status").read_text(), re.M)
    return int(mask, 8)


def main() -> None:
    """Make copies until the starting process ends. A copy leaves the loop and runs its command."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in IMPORTED:
        importlib.import_module(name)
    # Ctrl-C in a terminal goes to all processes. It ends the copies. This process ends with its
    # parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    if (copy := _serve(control)) is None:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments, folder, environment, umask = copy
    os.chdir(folder)
    os.umask(umask)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    runpy.run_module("worker", run_name="__main__", alter_sys=True)


def _serve(control: socket.socket) -> tuple[list[str], str, dict[str, str], int] | None:
    """The request of a copy, in the copy. None at the end, in the process that is copied."""
    running: dict[int, tuple[int, socket.socket]] = {}
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    while True:
        for file, _ in waiting.poll():
            if file in running:
                pid, ended = running.pop(file)
                waiting.unregister(file)
                os.close(file)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with ended, suppress(BrokenPipeError):  # the test has dropped it
                    ended.send(b"%d" % code)
                continue
            request, passed, _, _ = socket.recv_fds(control, REQUEST_BYTES, 4)
            if not request:
                return None
            *files, last = passed
            ended = socket.socket(fileno=last)
            if not (pid := os.fork()):
                for each in (control, ended, *(other for _, other in running.values())):
                    each.close()
                for number, each_file in enumerate(files):
                    os.dup2(each_file, number)
                for each_file in (*files, *running):
                    os.close(each_file)
                arguments, folder, environment, umask = json.loads(request)
                return arguments, folder, environment, umask
            for each_file in files:
                os.close(each_file)
            ended.send(b"%d" % pid)
            file = os.pidfd_open(pid)
            running[file] = pid, ended
            waiting.register(file, select.POLLIN)


if __name__ == "__main__":
    main()
