"""Runs the process that makes costly checks: starts it when it is needed, gives it one job after
the other, and ends it if a job takes too long.
"""

import asyncio
import contextlib
import json
import marshal
import os
import signal
import sys
from pathlib import Path
from typing import Any

import structlog

from worker.checks.jobs import Verdict
from worker.checks.wire import HEAD, MISSING, Job

log = structlog.get_logger(__name__)

# The kernel limits a job's CPU time. A busy machine may take longer to spend it: after this many
# times the limit, the process is ended from here. A guess.
PATIENCE = 4
# Longest start, in seconds. The interpreter and jsonschema take 0.3 seconds of CPU.
START_SECONDS = 60.0
# Bytes of a reply besides its message, which has up to six bytes a character.
_REPLY_ROOM = 1000


class CantStart(Exception):
    """The process can't be started now."""


class _Ended(Exception):
    """The process ended during a job."""


class CheckProcess:
    """At most one process. Only one :meth:`verdict` may run at a time."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._sent: set[tuple[str, bytes]] = set()

    async def verdict(self, job: Job) -> tuple[Verdict, float]:
        """Make a check.

        Args:
            job: with the schema's text.

        Returns:
            The verdict, and the CPU seconds it took.

        Raises:
            CantStart: there is no process.
        """
        too_long = Verdict("costly", f"it takes more than {job.seconds:.0f} seconds of CPU time"), job.seconds
        # Something else may have ended the process, so try twice before blaming the job.
        for _ in range(2):
            try:
                return await self._ask(job)
            except TimeoutError:
                await self.close()
                return too_long
            except _Ended:
                status = await self.close()
                if status == -signal.SIGXCPU:
                    return too_long
            except BaseException:
                await self.close()
                raise
        return Verdict("costly", f"the process that makes it ends over it (status {status})"), 1.0

    async def close(self) -> int | None:
        """End the process. Returns its exit status."""
        process, self._process = self._process, None
        self._sent.clear()
        if process is None:
            return None
        try:
            # A process that ended during a job may not be collected yet.
            async with asyncio.timeout(0.5 if _at_end(process) else 0):
                return await process.wait()
        except TimeoutError:
            pass
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()

    async def _ask(self, job: Job) -> tuple[Verdict, float]:
        process = self._process or await self._start()
        known = (job.kind, job.digest) in self._sent
        sent = job._replace(text=None) if known else job
        async with asyncio.timeout(job.seconds * PATIENCE):
            outcome, message, references, seconds = await _exchange(process, sent)
            if outcome == MISSING:
                self._sent.clear()
                outcome, message, references, seconds = await _exchange(process, job)
        self._sent.add((job.kind, job.digest))
        return Verdict(outcome, message, references), seconds

    async def _start(self) -> asyncio.subprocess.Process:
        package = Path(__file__).parent.parent.parent
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "worker.checks",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # No passwords or tokens: the process runs templates of others.
                env={"PYTHONPATH": os.pathsep.join((str(package), *filter(None, sys.path)))},
                start_new_session=True,
            )
            assert process.stdout is not None
            async with asyncio.timeout(START_SECONDS):
                await process.stdout.readexactly(HEAD.size)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            status = await self.close()
            raise CantStart(f"{error or type(error).__name__}, status {status}") from error
        log.info("check_process_started", pid=process.pid)
        return process


async def _exchange(process: asyncio.subprocess.Process, job: Job) -> tuple[Any, str, int | None, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    data = marshal.dumps(tuple(job), 2)
    try:
        process.stdin.write(HEAD.pack(len(data)))
        process.stdin.write(data)
        await process.stdin.drain()
        (size,) = HEAD.unpack(await process.stdout.readexactly(HEAD.size))
        if size > 6 * job.room + _REPLY_ROOM:
            raise _Ended
        seconds, outcome, message, references = json.loads(await process.stdout.readexactly(size))
    # RuntimeError is uvloop's error for a pipe that closed between two jobs.
    except (OSError, RuntimeError, ValueError, asyncio.IncompleteReadError) as error:
        raise _Ended from error
    return outcome, message, references, seconds


def _at_end(process: asyncio.subprocess.Process) -> bool:
    return process.stdout is not None and process.stdout.at_eof()
