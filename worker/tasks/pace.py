"""Spreads large steps over the turns of the event loop. Knows nothing of the work."""

import asyncio


class Pace:
    """One large step in a turn of the event loop, whichever task makes it. So the steps of several
    tasks don't add up to one long pause.

    Single event loop, not thread safe.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def turn(self) -> None:
        """Wait for a turn without another large step. Take the step right after that."""
        await self._lock.acquire()
        asyncio.get_running_loop().call_soon(self._lock.release)
