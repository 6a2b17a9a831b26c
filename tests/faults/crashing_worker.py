"""A worker that kills itself once at a seam of the line: ``python -m tests.faults.crashing_worker
SEAM FILE``.

The seam is patched from outside, so the worker needs no code for this. FILE records that it has
happened.
"""

import os
import signal
import sys
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

from worker.broker.acknowledger import Acknowledger
from worker.cli import app
from worker.events.outbox import Outbox
from worker.line.understand import Understand
from worker.store import Store

SEAMS: dict[str, tuple[Any, str, str]] = {
    "after decode, before commit": (Store, "create", "before"),
    "after commit, before reply": (Store, "create", "after"),
    "after reply, before acknowledgement": (Acknowledger, "_acknowledge_new", "before"),
    "while decoding": (Understand, "_new_run", "before"),
}
# The seams of a worker with events.
EVENT_SEAMS: dict[str, tuple[Any, str, str]] = {
    "after commit, before event": (Outbox, "_publications", "before"),
}


def main() -> None:
    seam, marker = sys.argv[1], Path(sys.argv[2])
    owner, name, when = {**SEAMS, **EVENT_SEAMS}[seam]
    original = getattr(owner, name)

    def die() -> None:
        if not marker.exists():
            marker.write_text(seam)
            os.kill(os.getpid(), signal.SIGKILL)

    async def patched_async(self: Any, *arguments: Any, **options: Any) -> Any:
        if when == "before":
            die()
        result = await original(self, *arguments, **options)
        if when == "after":
            die()
        return result

    def patched(self: Any, *arguments: Any, **options: Any) -> Any:
        if when == "before":
            die()
        result = original(self, *arguments, **options)
        if when == "after":
            die()
        return result

    setattr(owner, name, patched_async if iscoroutinefunction(original) else patched)
    app(["run"])


if __name__ == "__main__":
    main()
