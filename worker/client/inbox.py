"""Hands values to a thread that waits for them, or to a greenlet of gevent."""

import _thread
import sys
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Inbox(Protocol[T]):
    """Values in the order of their arrival."""

    def put(self, value: T) -> None:
        """Add a value, from any thread."""

    def get(self, seconds: float) -> T:
        """Wait for the next value, where the inbox was made.

        Raises:
            TimeoutError: none came in time.
        """

    def is_empty(self) -> bool:
        """Whether :meth:`get` would wait."""

    def close(self) -> None:
        """Give up waiting; values may still be added."""


def make_inbox() -> Inbox[Any]:
    """An inbox for the current thread or greenlet."""
    return _GreenletInbox() if threads_are_greenlets() else _ThreadInbox()


def threads_are_greenlets() -> bool:
    """Whether gevent has replaced this process's threads by greenlets (``monkey.patch_all``)."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def native(name: str) -> Any:
    """A function of ``_thread``, as it was before gevent replaced it."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original("_thread", name) if monkey else getattr(_thread, name)


class _ThreadInbox(Generic[T]):
    def __init__(self) -> None:
        self._values: SimpleQueue[T] = SimpleQueue()

    def put(self, value: T) -> None:
        self._values.put(value)

    def get(self, seconds: float) -> T:
        try:
            return self._values.get(timeout=min(seconds, threading.TIMEOUT_MAX))
        except Empty:
            raise TimeoutError from None

    def is_empty(self) -> bool:
        return self._values.empty()

    def close(self) -> None:
        pass


class _GreenletInbox(Generic[T]):
    """Lets other greenlets run meanwhile. gevent wakes its own thread by an ``async_`` watcher, the
    only part of it that another thread may call.
    """

    def __init__(self) -> None:
        from gevent import get_hub
        from gevent.event import Event

        self._values: deque[T] = deque()
        self._arrived = Event()
        self._watcher = get_hub().loop.async_()
        self._watcher.start(self._arrived.set)
        # Without it a late value might wake a watcher that is gone.
        self._lock = native("allocate_lock")()
        self._closed = False

    def put(self, value: T) -> None:
        with self._lock:
            self._values.append(value)
            if not self._closed:
                self._watcher.send()

    def get(self, seconds: float) -> T:
        until = time.monotonic() + min(seconds, threading.TIMEOUT_MAX)
        while not self._values:
            self._arrived.clear()
            if not self._arrived.wait(max(0.0, until - time.monotonic())) and not self._values:
                raise TimeoutError
        return self._values.popleft()

    def is_empty(self) -> bool:
        return not self._values

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._watcher.stop()
            self._watcher.close()
