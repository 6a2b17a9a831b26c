"""Parts shared by the commands: options, the two consoles, output, and the event loop."""

import asyncio
from collections.abc import Coroutine
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
    return Progress(*columns, console=err, transient=True)


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
