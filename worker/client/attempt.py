"""One attempt at a time that any number of tasks wait for. Knows no broker."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Attempt(Generic[T]):
    task: "asyncio.Task[T]"
    waiting: int = 0


class SharedAttempt(Generic[T]):
    """Tasks that ask while an attempt runs wait for the same one. Without any it is cancelled.

    Args:
        make: makes the attempt.
    """

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._attempt: _Attempt[T] | None = None

    async def ended(self) -> "asyncio.Task[T]":
        """The task of the attempt, once it has ended: cancelled, with an error, or with a
        result.
        """
        attempt = self._attempt
        if attempt is None or not attempt.waiting or attempt.task.done():
            attempt = self._attempt = _Attempt(asyncio.create_task(self._make()))
        attempt.waiting += 1
        try:
            await asyncio.wait((attempt.task,))
        finally:
            attempt.waiting -= 1
            if not attempt.waiting:
                attempt.task.cancel()  # no effect if it is done
        return attempt.task

    async def cancel(self) -> None:
        """Cancel the attempt, if there is one."""
        if self._attempt is not None:
            self._attempt.task.cancel()
            await asyncio.wait((self._attempt.task,))
