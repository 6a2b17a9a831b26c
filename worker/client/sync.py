"""The blocking client, for scripts and notebooks: runs the asynchronous one on a thread."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from functools import partial, wraps
from queue import SimpleQueue
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from ..broker.connection import CLOSE_TIMEOUT
from .client import CLOSED, DEFAULT_QUEUE, DEFAULT_TIMEOUT, CreateOutcome, check_concurrency
from .client import FlowRunClient as AsyncClient
from .errors import BrokerGone
from .message import Headers, Request

P = ParamSpec("P")
T = TypeVar("T")
Method = Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]


def _blocking(method: Method[P, T]) -> Callable[Concatenate["FlowRunClient", P], T]:
    """The blocking form of a method of the asynchronous client, with the same signature."""

    @wraps(method)
    def call(self: "FlowRunClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        future = self._here().start(method, *args, **kwargs)
        try:
            return future.result()
        finally:
            future.cancel()  # if this thread was interrupted; no effect on a call that is done

    return call


class FlowRunClient:
    """Creates flow runs with blocking calls. :class:`worker.client.FlowRunClient` has the
    documentation of the methods and their errors.

    Many threads may use it at once. A process that is forked after its use (Gunicorn's preload,
    Celery's prefork) gets its own thread and connection. Close it, or use it in a ``with``
    statement.
    """

    def __init__(self, url: str, *, queue: str = DEFAULT_QUEUE, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._make = partial(AsyncClient, url, queue=queue, timeout=timeout)
        self._closed = False
        # Loops by process id. A forked process keeps its parent's loop here and never uses it: the
        # loop's thread is missing, and closing or collecting it would disturb the parent's sockets.
        self._loops = {os.getpid(): _ClientLoop(self._make())}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread of this process, like
        :meth:`worker.client.FlowRunClient.close`.
        """
        self._closed = True
        if (loop := self._loops.get(os.getpid())) is not None:
            loop.close()

    create_flow_run = _blocking(AsyncClient.create_flow_run)
    run_deployment = _blocking(AsyncClient.run_deployment)
    request = _blocking(AsyncClient.request)
    publish = _blocking(AsyncClient.publish)

    def create_many(
        self,
        requests: Iterable[Request],
        *,
        concurrency: int = 500,
        headers: Headers = None,
        timeout: float | None = None,
    ) -> Iterator[CreateOutcome]:
        """Send many requests, and yield their outcomes as they arrive.

        The iterable runs in the caller's thread. Outcomes that have arrived are yielded before the
        next request is taken.
        """
        check_concurrency(concurrency)
        loop, pid = self._here(), os.getpid()
        running: set[Future[CreateOutcome]] = set()
        ended: SimpleQueue[Future[CreateOutcome]] = SimpleQueue()

        def end() -> CreateOutcome:
            if pid != os.getpid():
                raise BrokerGone("The process was forked while the outcomes were being waited for.")
            future = ended.get()
            running.discard(future)
            return future.result()

        try:
            for index, request in enumerate(requests):
                future = loop.start(AsyncClient.outcome, index, request, headers, timeout)
                running.add(future)
                future.add_done_callback(ended.put)
                while len(running) >= concurrency or not ended.empty():
                    yield end()
            while running:
                yield end()
        finally:
            for future in running:
                future.cancel()

    def _here(self) -> "_ClientLoop":
        """This process's loop. Two threads that ask first at the same time may make one each, but
        only one is kept. There is no lock: a fork could leave it locked for ever.
        """
        if self._closed:
            raise BrokerGone(CLOSED)
        pid = os.getpid()
        loop = self._loops.get(pid)
        return loop or self._loops.setdefault(pid, _ClientLoop(self._make()))


class _ClientLoop:
    """An asynchronous client, and the thread of its event loop, which starts at the first call."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def start(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        with self._lock:
            if self._closed:
                raise BrokerGone(CLOSED)
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="flow-run-client", daemon=True
                )
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(method(self._client, *args, **kwargs), self._loop)

    def close(self) -> None:
        with self._lock:
            self._closed, closed_before = True, self._closed
        if closed_before or self._loop is None:
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        """Close the client, and wait until its running calls have failed."""
        await self._client.close()
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        if calls:
            await asyncio.wait(calls, timeout=2 * CLOSE_TIMEOUT)  # a call may have to close a connection
