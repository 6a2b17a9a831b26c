"""A worker with a heartbeat: ``python -P beating_worker.py FILE``. A task of its event loop records
in the file how late it wakes. The interpreter decides the worker, which may be an older one.
"""

import asyncio
import mmap
import struct
import sys
from pathlib import Path
from time import monotonic, thread_time
from typing import Any

# Seconds between two beats.
BEAT = 0.005
# The largest lateness in seconds; the largest CPU time of the loop between two beats; and the time
# of the last beat by the system's clock.
_NOTED = struct.Struct("ddd")


class Heartbeat:
    """The largest lateness of a process's event loop, readable by itself and by others.

    Args:
        file: shared by them.
    """

    def __init__(self, file: Path) -> None:
        file.touch()
        with file.open("r+b") as opened:
            opened.truncate(_NOTED.size)
            self._shared = mmap.mmap(opened.fileno(), _NOTED.size)

    async def beat(self) -> None:
        """Record the lateness, without end."""
        while True:
            due, used = monotonic() + BEAT, thread_time()
            await asyncio.sleep(BEAT)
            now = monotonic()
            late, busy, _ = _NOTED.unpack_from(self._shared)
            _NOTED.pack_into(self._shared, 0, max(late, now - due), max(busy, thread_time() - used), now)

    def lateness(self) -> float:
        """The largest in seconds since the last :meth:`reset`, including a current one."""
        late, _, last = _NOTED.unpack_from(self._shared)
        return max(late, monotonic() - last - BEAT) if last else 0.0

    def busy(self) -> float:
        """The most CPU seconds that the loop took between two beats: the part of its lateness that
        other processes did not cause.
        """
        return float(_NOTED.unpack_from(self._shared)[1])

    def reset(self) -> None:
        """Reset the record."""
        _NOTED.pack_into(self._shared, 0, 0.0, 0.0, 0.0)


def main() -> None:
    from worker import service
    from worker.cli import app

    serve = service.serve

    async def serve_and_beat(settings: Any) -> None:
        beating = asyncio.create_task(Heartbeat(Path(sys.argv[1])).beat())
        await serve(settings)
        beating.cancel()

    service.serve = serve_and_beat
    app(["run"])


if __name__ == "__main__":
    main()
