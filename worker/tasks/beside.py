"""A task beside the line, from its start to its end. Knows nothing of the task's work."""

import asyncio


class Beside:
    """Work in a task of its own. A subclass has the work in ``_run``, which ends once ``_stopping``
    is set.

    Args:
        seconds: to end after :meth:`stop`. Then the task is cancelled.
    """

    def __init__(self, seconds: float) -> None:
        self._stopping = asyncio.Event()
        self._seconds = seconds
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task. Further calls do nothing."""
        if self._running is None:
            self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the task. Waits as long again for the end of a cancelled one."""
        self._stopping.set()
        if self._running is not None:
            await asyncio.wait((self._running,), timeout=self._seconds)
            self._running.cancel()
            await asyncio.wait((self._running,), timeout=self._seconds)

    async def _run(self) -> None:
        raise NotImplementedError
