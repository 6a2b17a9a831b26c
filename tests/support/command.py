"""Runs a command of the project as a user does."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from tests.support.forks import ROOT, Forks


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
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "COLUMNS": str(columns),
        **{f"WORKER_{name.upper()}": str(value) for name, value in settings.items()},
    }
    with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
        given.write(stdin or b"")
        given.seek(0)
        process = Forks.shared().start(
            *arguments, folder=Path.cwd(), environment=environment, files=(given, out, err)
        )
        try:
            code = await asyncio.to_thread(process.wait, 300)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        return Done(code, out.read().decode(), err.read().decode())
