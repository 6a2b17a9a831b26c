"""Waits between two tries at something that is down: exponential, with jitter, up to a limit."""

import asyncio
import random
from contextlib import suppress


class Backoff:
    """Delays that double from ``first`` seconds to ``longest``. Each is drawn between half of that
    and all of it.

    The jitter keeps a fleet from retrying in step once the database or the broker is back.
    """

    def __init__(self, first: float = 0.1, longest: float = 10.0, tries: int = 0) -> None:
        self.first = first
        self.longest = longest
        self.tries = tries

    def next_delay(self) -> float:
        """The next delay in seconds; each call counts as a try."""
        ceiling: float = min(self.longest, self.first * 2.0 ** min(self.tries, 30))
        self.tries += 1
        return random.uniform(ceiling / 2, ceiling)

    async def sleep(self, until: asyncio.Event | None = None) -> None:
        """Wait for the next delay, or until an event is set."""
        if until is None:
            await asyncio.sleep(self.next_delay())
        else:
            await pause(self.next_delay(), until)

    def reset(self) -> None:
        """Start again from the first delay."""
        self.tries = 0


async def pause(seconds: float, until: asyncio.Event) -> None:
    """Wait for some seconds, or until an event is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await until.wait()
