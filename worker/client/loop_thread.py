"""An event loop on a thread of its own, for callers without one. Knows no broker."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

from .inbox import make_inbox, native, threads_are_greenlets

T = TypeVar("T")

# Seconds for a thread to start or to end. On a busy machine it takes tenths.
THREAD_SECONDS = 30.0


class ThreadFailed(RuntimeError):
    """The thread can't be started, or its loop has ended."""


class Call(Generic[T]):
    """A coroutine that runs on the loop's thread.

    Args:
        make: makes the coroutine, on that thread.
        on_end: is called there with this call when the coroutine has ended.
    """

    def __init__(
        self, make: Callable[[], Coroutine[Any, Any, T]], on_end: Callable[["Call[T]"], object]
    ) -> None:
        self._make = make
        self._on_end = on_end
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False

    def result(self) -> T:
        """The coroutine's result or error, once it has ended.

        Raises:
            ThreadFailed: it was cancelled.
        """
        assert self._task is not None
        if self._task.cancelled():
            raise ThreadFailed("the client's thread has ended")
        return self._task.result()

    def start(self) -> None:
        if not self._cancelled:
            self._task = asyncio.get_running_loop().create_task(self._make())
            self._task.add_done_callback(lambda _: self._on_end(self))

    def cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()


class LoopThread:
    """Starts the thread.

    Under gevent it is a real thread too: two loops in greenlets of one thread exclude each other.

    Raises:
        ThreadFailed: it can't be started, for example because the process has too many, or ends.
    """

    def __init__(self) -> None:
        self._ended = make_inbox()
        started = make_inbox()
        run = partial(_run, started.put, self._ended.put)
        try:
            if threads_are_greenlets():
                native("start_new_thread")(run, ())
            else:
                threading.Thread(target=run, name="flow-run-client", daemon=True).start()
            loop, self._ident = started.get(THREAD_SECONDS)
        except (RuntimeError, OSError) as error:  # a TimeoutError too
            raise ThreadFailed(str(error) or "it does not start") from error
        finally:
            started.close()
        if isinstance(loop, OSError):
            raise ThreadFailed(str(loop)) from loop
        self._loop: asyncio.AbstractEventLoop = loop

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on this thread, where waiting for a call would never end."""
        return bool(self._ident == native("get_ident")())

    def start(self, call: Call[Any]) -> None:
        """Start a call.

        Raises:
            ThreadFailed: the loop has ended.
        """
        self._soon(call.start)

    def cancel(self, call: Call[Any]) -> None:
        """Cancel a call; no effect once it has ended."""
        try:
            self._soon(call.cancel)
        except ThreadFailed:
            return

    def stop(self) -> None:
        """End the thread, when its loop gets to it."""
        self._soon(self._loop.stop)

    def join(self) -> None:
        """Wait for the end of the thread, within :data:`THREAD_SECONDS`."""
        try:
            self._ended.get(THREAD_SECONDS)
        except TimeoutError:
            return  # it may be looking up an address, and ends later

    def _soon(self, function: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError as error:
            raise ThreadFailed(str(error)) from error


def _run(started: Callable[[Any], None], ended: Callable[[None], None]) -> None:
    try:
        loop = asyncio.new_event_loop()
    except OSError as error:  # too many open files
        started((error, 0))
        return
    started((loop, native("get_ident")()))
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
        ended(None)
