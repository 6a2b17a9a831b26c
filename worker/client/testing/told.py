"""Tells the states of a fake's runs to those who follow them, in any event loop."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ...contract.record import FlowRunRecord
from ...contract.states import routing_key

_Follower = tuple[asyncio.AbstractEventLoop, "asyncio.Queue[FlowRunRecord]", Sequence[str]]


class Told:
    """Followers of states. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._followers: list[_Follower] = []

    def tell(self, record: FlowRunRecord) -> None:
        """Tell the present state of a run."""
        state = "" if record.state_type is None else record.state_type.value
        words = routing_key(state, record.flow_id, record.deployment_id, record.id).split(".")
        with self._lock:
            for loop, queue, pattern in self._followers:
                if _matches(pattern, words):
                    with suppress(RuntimeError):  # the loop was closed
                        loop.call_soon_threadsafe(queue.put_nowait, record)

    @contextmanager
    def followed(self, pattern: str) -> "Iterator[asyncio.Queue[FlowRunRecord]]":
        """A queue of the states that are published meanwhile.

        Args:
            pattern: of routing keys, as of a topic exchange.
        """
        queue: asyncio.Queue[FlowRunRecord] = asyncio.Queue()
        follower = asyncio.get_running_loop(), queue, pattern.split(".")
        with self._lock:
            self._followers.append(follower)
        try:
            yield queue
        finally:
            with self._lock:
                self._followers.remove(follower)


def _matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Whether a topic exchange takes these words for a pattern."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_matches(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _matches(pattern[1:], words[1:])
