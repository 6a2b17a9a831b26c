"""Bounds the bytes held at one time. Knows nothing of their owners."""

import asyncio


class Budget:
    """Counts held bytes up to a limit. An item larger than the limit fits while nothing else is
    held, so that it is served too.

    Single event loop, not thread safe.

    Attributes:
        held: the bytes held now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.held = 0
        self._max_bytes = max_bytes
        self._less: asyncio.Event | None = None

    def fits(self, size: int) -> bool:
        """Whether ``size`` more bytes may be held now."""
        return not self.held or self.held + size <= self._max_bytes

    def take(self, size: int) -> bool:
        """Hold ``size`` more bytes if they fit. Returns whether they did."""
        if not self.fits(size):
            return False
        self.held += size
        return True

    def change(self, by: int) -> None:
        """Add bytes to those held, or remove them. Added bytes need not fit."""
        self.held += by
        if by < 0 and self._less is not None:
            self._less.set()
            self._less = None

    async def room(self, size: int = 0) -> None:
        """Wait until ``size`` more bytes fit. Take them before the next ``await``."""
        while not self.fits(size):
            self._less = self._less or asyncio.Event()
            await self._less.wait()
