"""How long to wait between two tries at something that is down: exponential, with full jitter,
bounded.
"""

import asyncio
import random

LONGEST = 10.0  # seconds


class Backoff:
    """Delays that double from ``first`` seconds to ``LONGEST``, each drawn between half of it and
    all of it.

    The jitter keeps a fleet of workers from coming back in step after the database or the broker
    returns.
    """

    def __init__(self, first: float = 0.1) -> None:
        self.first = first
        self.tries = 0

    def next_delay(self) -> float:
        """The next delay in seconds; each call counts as a try."""
        ceiling: float = min(LONGEST, self.first * 2.0 ** min(self.tries, 30))
        self.tries += 1
        return random.uniform(ceiling / 2, ceiling)

    async def sleep(self) -> None:
        """Wait for the next delay."""
        await asyncio.sleep(self.next_delay())

    def reset(self) -> None:
        """Start again from the first delay."""
        self.tries = 0
