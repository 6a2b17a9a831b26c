"""A bound in bytes on what is held at one time; knows nothing of what that is."""

import asyncio


class Budget:
    """Counts bytes that are held, up to a limit. What is larger than the limit is held alone, so
    that it is served as well.

    Single event loop, not thread safe.

    Attributes:
        held: how many bytes are held.
    """

    def __init__(self, max_bytes: int) -> None:
        self.held = 0
        self._max_bytes = max_bytes
        self._less: asyncio.Event | None = None

    def fits(self, size: int) -> bool:
        """Whether so many bytes more may be held now."""
        return not self.held or self.held + size <= self._max_bytes

    def take(self, size: int) -> bool:
        """Hold so many bytes more, if they fit; tells whether."""
        if not self.fits(size):
            return False
        self.held += size
        return True

    def change(self, by: int) -> None:
        """Hold so many bytes more, whether they fit or not; or less, for a negative number."""
        self.held += by
        if by < 0 and self._less is not None:
            self._less.set()
            self._less = None

    async def room(self, size: int = 0) -> None:
        """Wait until so many bytes fit. What the waiting task then takes, it takes at once."""
        while not self.fits(size):
            self._less = self._less or asyncio.Event()
            await self._less.wait()
