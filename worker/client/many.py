"""Works on many requests at once, a bounded number at a time."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from .message import Request

T = TypeVar("T")


def check_concurrency(concurrency: int) -> None:
    """Raise ValueError unless at least one request may be under way."""
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}, and has to be at least 1")


async def many(
    requests: Iterable[Request] | AsyncIterable[Request],
    work: Callable[[int, Request], Coroutine[Any, Any, T]],
    concurrency: int,
) -> AsyncIterator[T]:
    """Yield the results of the work on each request, as they come.

    A request is taken from the iterable only once there is room for it, so memory stays bounded. It
    takes room until its result is taken. An error of the iterable is raised, and ends all work.

    Args:
        work: takes the request's number, from 0, and the request.
        concurrency: most requests under way at once.
    """
    room = asyncio.Semaphore(concurrency)
    running: set[asyncio.Task[Any]] = set()
    ended: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()

    def start(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        running.add(task)
        task.add_done_callback(ended.put_nowait)
        return task

    async def take() -> None:
        source = requests if isinstance(requests, AsyncIterable) else _one_by_one(requests)
        index = 0
        await room.acquire()
        async for request in source:
            start(work(index, request))
            index += 1
            await room.acquire()

    taking = start(take())
    try:
        while running:
            task = await ended.get()
            running.discard(task)
            result = task.result()
            if task is not taking:
                room.release()
                yield result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _one_by_one(requests: Iterable[Request]) -> AsyncIterator[Request]:
    for request in requests:
        yield request
