"""Gives turns, one after the other. Knows nothing of the work that waits for them."""

import asyncio
from collections import deque

# A turn begins after this many seconds at the latest: the turn before it may never end if its
# session is lost. A guess.
LONGEST_SECONDS = 10.0


class Turns:
    """Futures that are done one at a time, at each call of :meth:`next`.

    Single event loop, not thread safe.
    """

    def __init__(self, longest: float = LONGEST_SECONDS) -> None:
        self._longest = longest
        self._waiting: deque[asyncio.Future[None]] = deque()

    def wait(self, *, first: bool = False) -> "asyncio.Future[None]":
        """A future that is done when its turn comes: after all others, or before them."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        loop.call_later(self._longest, _begin, turn)
        (self._waiting.appendleft if first else self._waiting.append)(turn)
        return turn

    def next(self) -> None:
        """Begin the next turn, if one waits."""
        while self._waiting and not _begin(self._waiting.popleft()):
            pass


def _begin(turn: "asyncio.Future[None]") -> bool:
    """Begin a turn. Returns False if it has begun before."""
    if turn.done():
        return False
    turn.set_result(None)
    return True
