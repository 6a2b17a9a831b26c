"""Parts shared by the commands: options, the two consoles, output, and the event loop."""

import asyncio
import re
import sys
from collections.abc import Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape as _escape_markup

from worker.contract.printable import printable, printable_json
from worker.tasks.collector import resume_collector

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

out = Console()
err = Console(stderr=True)

AmqpUrl = Annotated[
    str | None, typer.Option("--amqp-url", help="The broker, amqp:// or amqps://. [WORKER_AMQP_URL]")
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url", help="sqlite+aiosqlite:///FILE or postgresql+asyncpg://… [WORKER_DATABASE_URL]"
    ),
]
Queue = Annotated[str | None, typer.Option("--queue", help="The request queue. [WORKER_QUEUE]")]

Bindings = Annotated[
    str | None,
    typer.Option(
        "--bindings",
        help="EXCHANGE:ROUTING KEY, separated by commas: exchanges of others to bind the queue to. "
        "[WORKER_BINDINGS]",
    ),
]


_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def age(text: str) -> timedelta | None:
    """Read an age such as 90d, 12h or 2w. None: it is none."""
    match = re.fullmatch(r"(\d{1,6})\s*([mhdw])", text.strip().lower())
    return None if match is None else timedelta(**{_UNITS[match[2]]: int(match[1])})


async def confirm(question: str) -> bool | None:
    """Ask on the terminal. Connections stay alive meanwhile. None: standard input is at its end."""
    while True:
        out.print(f"{question} [y/N]:", end=" ", highlight=False, markup=False, soft_wrap=True)
        answer = await _line()
        if not answer:
            out.print()
            return None
        if (word := answer.strip().lower()) in ("y", "yes", "n", "no", ""):
            return word.startswith("y")


async def _line() -> str:
    """A line from standard input; empty at its end."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        number = sys.stdin.fileno()
        loop.add_reader(number, ready.set)
    except (NotImplementedError, OSError):
        pass  # a file, or Windows' event loop: read at once
    else:
        try:
            await ready.wait()
        finally:
            loop.remove_reader(number)
    return sys.stdin.readline()


def escape(text: str, keep: str = "") -> str:
    """Escape other people's text for rich's markup: it is shown as it is, and can't control the
    terminal.

    Args:
        keep: see :func:`worker.contract.printable.printable`.
    """
    return _escape_markup(printable(text, keep))


def progress_bar() -> "Progress":
    """A bar for the progress of a command, on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Without a terminal it would leave an empty line.
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def print_json(text: str) -> None:
    """Print JSON, with colours on a terminal. Control characters are escaped, which keeps the
    value.
    """
    text = printable_json(text)
    if out.is_terminal:
        from rich.highlighter import JSONHighlighter

        out.print(JSONHighlighter()(text), soft_wrap=True)
    else:
        print(text)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop, if there is one (not on Windows). All imports are done by now."""
    resume_collector()
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)
