"""What the commands share: the options that several have, the two consoles, and the event loop they
run on.
"""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

T = TypeVar("T")

out = Console()
err = Console(stderr=True)

AmqpUrl = Annotated[
    str | None,
    typer.Option("--amqp-url", help="The broker, amqp:// or amqps://. [WORKER_AMQP_URL]", show_default=False),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="sqlite+aiosqlite:///FILE or postgresql+asyncpg://… [WORKER_DATABASE_URL]",
        show_default=False,
    ),
]
Queue = Annotated[
    str | None, typer.Option("--queue", help="The request queue. [WORKER_QUEUE]", show_default=False)
]


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where there is one (not on Windows)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)
