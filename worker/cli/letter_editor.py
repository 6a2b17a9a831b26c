"""Lets a person edit the body of a dead letter in an editor."""

import asyncio
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import typer

from worker.cli.options import confirm, err, escape


async def edited(body: bytes, check: Callable[[bytes], Awaitable[str | None]]) -> bytes | None:
    """Open a body in the editor of ``$VISUAL`` or ``$EDITOR``, until a check has no complaint.

    Args:
        check: returns the complaint about a new body.

    Returns:
        The new body. None: it was not changed.

    Raises:
        typer.BadParameter: there is no editor, it failed, or the user gave up. A changed body is
            kept in a file, which the error names.
    """
    number, name = tempfile.mkstemp(prefix="dead-letter-", suffix=".json")
    with os.fdopen(number, "wb") as file:
        file.write(body)
    path = Path(name)
    keep = False
    try:
        while True:
            await _open_editor(path)
            new = path.read_bytes()  # noqa: ASYNC240  # small, and nothing else waits
            if new == body:
                return None
            keep = True
            if (complaint := await check(new)) is None:
                keep = False
                return new
            err.print(f"[yellow]{escape(complaint)}[/]", highlight=False)
            if not (sys.stdin.isatty() and await confirm("Edit it again?")):
                raise typer.BadParameter(f"nothing was sent; your text is in {path}")
    finally:
        if not keep:
            path.unlink()  # noqa: ASYNC240


async def _open_editor(path: Path) -> None:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        process = await asyncio.create_subprocess_exec(*shlex.split(editor), str(path))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"the editor '{editor}' can't be started ($EDITOR): {error}") from error
    # Ctrl-C is for the editor, which has started with the usual handler.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = await process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    if code:
        raise typer.BadParameter(f"the editor '{editor}' ended with exit code {code}: nothing was sent")
