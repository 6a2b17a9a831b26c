"""Starts workers as copies of one process that has imported their modules: importing takes most of
the CPU of a start. Each is then the command ``run`` in a process of its own, like any other.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any, Self

ROOT = Path(__file__).parents[2]
# A worker imports these until it serves, on either database.
IMPORTED = (
    "worker.cli.run",
    "worker.service",
    "worker.store.migrations",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "alembic.command",
    "uvloop",
)
REQUEST_BYTES = 2**17


class Fork:
    """A copy. It has the part of ``subprocess.Popen`` that tests of workers use."""

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
            raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0)
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

    def start(self, folder: Path, environment: Mapping[str, str], output: IO[bytes]) -> Fork:
        """Start a worker in this folder, with this as its whole environment."""
        ended, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            request = json.dumps([str(folder), dict(environment)]).encode()
            socket.send_fds(self._control, [request], [output.fileno(), theirs.fileno()])
        if not (pid := ended.recv(64)):
            raise RuntimeError("the process that workers are copied from has ended")
        return Fork(int(pid), ended)


def main() -> None:
    """Make copies until the starting process ends. Each copy leaves the loop, and is a worker."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in IMPORTED:
        importlib.import_module(name)
    # Ctrl-C in a terminal goes to all processes. It ends the copies; this one ends with its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    if (copy := _serve(control)) is None:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, environment = copy
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(ROOT / "worker/__main__.py"), "run"]
    from worker.__main__ import main as worker

    worker()


def _serve(control: socket.socket) -> tuple[str, dict[str, str]] | None:
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
                ended.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                ended.close()
                continue
            request, (*files,), _, _ = socket.recv_fds(control, REQUEST_BYTES, 2)
            if not request:
                return None
            output, ended = files[0], socket.socket(fileno=files[1])
            if not (pid := os.fork()):
                for each in (control, ended, *(other for _, other in running.values())):
                    each.close()
                for copied in (1, 2):
                    os.dup2(output, copied)
                for each_file in (output, *running):
                    os.close(each_file)
                found: Any = json.loads(request)
                return found[0], found[1]
            os.close(output)
            ended.send(b"%d" % pid)
            file = os.pidfd_open(pid)
            running[file] = pid, ended
            waiting.register(file, select.POLLIN)


if __name__ == "__main__":
    main()
