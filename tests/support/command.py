"""Runs a command of the project as a user does."""

import asyncio
import os
import sys
from dataclasses import dataclass

from tests.support.worker_process import ROOT


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


async def command(
    *arguments: str, stdin: bytes | None = None, columns: int = 200, **settings: object
) -> Done:
    """Run ``flow-run-worker`` with these arguments on a terminal with this many columns;
    ``settings`` go into its environment as WORKER_NAME.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", *arguments),
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": str(columns),
            **{f"WORKER_{name.upper()}": str(value) for name, value in settings.items()},
        },
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), 300)
    return Done(process.returncode or 0, out.decode(), err.decode())
