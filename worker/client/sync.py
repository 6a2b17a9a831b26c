"""The blocking client, for scripts and notebooks: runs the asynchronous one on a thread."""

import asyncio
import math
import os
import sys
import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

from ..broker.connection import CLOSE_TIMEOUT
from ..contract.record import FlowRunRecord
from .client import DEFAULT_QUEUE, DEFAULT_TIMEOUT
from .client import FlowRunClient as AsyncClient
from .errors import BrokerGone, NoReply
from .inbox import Inbox, make_inbox
from .loop_thread import Call, LoopThread, ThreadFailed
from .many import check_concurrency
from .message import Request
from .options import Options, check_timeout, check_wait
from .outcomes import CreateOutcome, PublishOutcome
from .reconnector import CLOSED

P = ParamSpec("P")
T = TypeVar("T")
Method = Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]

# Seconds that a caller waits beyond its timeout for the thread to say so. A thread that was ended,
# as at the end of the interpreter, never does.
GRACE = 0.8
FORKED = "The process was forked while the outcomes were being waited for."
NO_ANSWER = "The client's thread does not answer. The request may have been sent, and may still be served."


def _blocking(
    method: Method[P, T], limit: "Callable[[FlowRunClient, dict[str, Any]], float] | None" = None
) -> Callable[Concatenate["FlowRunClient", P], T]:
    """The blocking form of a method of the asynchronous client, with the same signature.

    Args:
        limit: the seconds after which the thread must have answered, from the call's options
            (default: those for a reply).
    """

    @wraps(method)
    def call(self: "FlowRunClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        seconds = (limit or FlowRunClient._limit)(self, kwargs)
        loop = self._here()
        return loop.call(partial(method, loop.client, *args, **kwargs), seconds)

    return call


class FlowRunClient:
    """Creates flow runs with blocking calls. :class:`worker.client.FlowRunClient` has the
    documentation of the methods and their errors.

    Many threads may use it at once, and greenlets of gevent. A process that is forked after its use
    (Gunicorn's preload, Celery's prefork) gets its own thread and connection. Close it, or use it
    in a ``with`` statement.
    """

    # Makes the client that it runs.
    _client: Callable[..., AsyncClient] = AsyncClient

    def __init__(self, url: str, *, queue: str = DEFAULT_QUEUE, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._timeout = timeout
        self._make = partial(self._client, url, queue=queue, timeout=timeout)
        # Loops by process id. A forked process keeps its parent's loop here and never uses it: the
        # loop's thread is missing, and closing or collecting it would disturb the parent's sockets.
        self._loops = {os.getpid(): _ClientLoop(self._make())}
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) or sys.is_finalizing():  # or its URL was refused
            return
        loop = self._loops.get(os.getpid())
        if loop is not None and loop.is_running:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            loop.close(wait=False)

    def close(self) -> None:
        """Close the connection and end the thread of this process, like
        :meth:`worker.client.FlowRunClient.close`.
        """
        self._closed = True
        if (loop := self._loops.get(os.getpid())) is not None:
            loop.close()

    def _limit(self, options: Mapping[str, Any]) -> float:
        # 0 has a meaning of its own for a method. The others refuse it.
        timeout = options.get("timeout")
        return (check_timeout(timeout) if timeout else self._timeout) + GRACE

    def _limit_of_create(self, options: Mapping[str, Any]) -> float:
        # Waiting may take as long as connecting and the request, and then the wait itself.
        wait = options.get("wait", False)
        if wait is False:
            return self._limit(options)
        seconds = check_wait(wait)
        return math.inf if seconds is None else 2 * self._limit(options) + seconds

    def _limit_of_wait(self, options: Mapping[str, Any]) -> float:
        timeout = options.get("timeout")
        return math.inf if timeout is None else check_timeout(timeout) + GRACE

    create_flow_run = _blocking(AsyncClient.create_flow_run, _limit_of_create)
    run_deployment = _blocking(AsyncClient.run_deployment, _limit_of_create)
    wait_for_flow_run = _blocking(AsyncClient.wait_for_flow_run, _limit_of_wait)
    request = _blocking(AsyncClient.request)
    publish = _blocking(AsyncClient.publish)

    def states(self, binding: str = "#") -> Iterator[FlowRunRecord]:
        """Yield the record of each state that is published from now on, once each. Close the
        iterator, or break, to end it.
        """
        loop, pid = self._here(), os.getpid()
        states = loop.client.states(binding)
        try:
            while pid == os.getpid():
                yield loop.call(partial(_next, states), math.inf)
            raise BrokerGone(FORKED)
        finally:
            if pid == os.getpid():
                with suppress(BrokerGone, NoReply):
                    loop.call(partial(_end, states), CLOSE_TIMEOUT + GRACE)

    def create_many(
        self,
        requests: Iterable[Request],
        *,
        concurrency: int = 500,
        type: str | None = None,
        **options: Unpack[Options],
    ) -> Iterator[CreateOutcome]:
        """Send many requests, and yield their outcomes as they arrive.

        The iterable runs in the caller's thread. Outcomes that have arrived are yielded before the
        next request is taken.
        """
        loop = self._here()
        work = partial(loop.client.create_outcome, type=type, **options)
        return self._many(loop, requests, work, concurrency, options)

    def publish_many(
        self,
        requests: Iterable[Request],
        *,
        concurrency: int = 500,
        type: str | None = None,
        **options: Unpack[Options],
    ) -> Iterator[PublishOutcome]:
        """Publish many requests that want no reply, and yield their outcomes as the broker confirms
        them. Otherwise like :meth:`create_many`.
        """
        loop = self._here()
        work = partial(loop.client.publish_outcome, type=type, **options)
        return self._many(loop, requests, work, concurrency, options)

    def _many(
        self,
        loop: "_ClientLoop",
        requests: Iterable[Request],
        work: Callable[[int, Request], Coroutine[Any, Any, T]],
        concurrency: int,
        options: Options,
    ) -> Iterator[T]:
        check_concurrency(concurrency)
        seconds, pid = self._limit(options), os.getpid()
        running: set[Call[T]] = set()
        ended: Inbox[Call[T]] = make_inbox()

        def end() -> T:
            if pid != os.getpid():
                forked = BrokerGone(FORKED)
                forked.maybe_sent = True  # by its parent
                raise forked
            call = loop.wait(ended, seconds)
            running.discard(call)
            return _result(call)

        try:
            for index, request in enumerate(requests):
                running.add(loop.start(partial(work, index, request), ended.put))
                while len(running) >= concurrency or not ended.is_empty():
                    yield end()
            while running:
                yield end()
        finally:
            ended.close()
            for call in running:
                loop.cancel(call)

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
        self.client = client
        # Reentrant: a __del__ that makes a call may run at any place.
        self._lock = threading.RLock()
        self._thread: LoopThread | None = None
        self._closed = False

    @property
    def is_running(self) -> bool:
        return self._thread is not None and not self._closed

    def call(self, make: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """Run a coroutine, and wait for its end."""
        ended: Inbox[Call[T]] = make_inbox()
        call = self.start(make, ended.put)
        try:
            return _result(self.wait(ended, seconds))
        except BaseException:
            self.cancel(call)  # if this thread was interrupted; no effect on a call that is done
            raise
        finally:
            ended.close()

    def start(
        self, make: Callable[[], Coroutine[Any, Any, T]], on_end: Callable[[Call[T]], object]
    ) -> Call[T]:
        """Start a coroutine on the loop's thread.

        Raises:
            BrokerGone: the client is closed, or has no thread.
        """
        if sys.is_finalizing():
            raise BrokerGone("The interpreter is ending: its threads don't run any more.")
        call = Call(make, on_end)
        try:
            with self._lock:
                if self._closed:
                    raise BrokerGone(CLOSED)
                if self._thread is None:
                    thread = LoopThread()
                    if self._thread is None:
                        self._thread = thread
                    else:  # started by a __del__ meanwhile
                        thread.stop()
                if self._thread.is_current:
                    raise BrokerGone("A call on the client's own thread, as in a __del__, would never end.")
                self._thread.start(call)
        except ThreadFailed as error:
            raise BrokerGone(f"The client's thread can't be used: {error}.") from error
        return call

    def wait(self, ended: Inbox[Call[T]], seconds: float) -> Call[T]:
        """Wait for the next call that ends."""
        try:
            return ended.get(seconds)
        except TimeoutError:
            raise NoReply(NO_ANSWER, "") from None

    def cancel(self, call: Call[Any]) -> None:
        """Cancel a call; no effect once it has ended."""
        if self._thread is not None:
            self._thread.cancel(call)

    def close(self, *, wait: bool = True) -> None:
        """Close the client, and end the thread."""
        with self._lock:
            thread, closed, self._closed = self._thread, self._closed, True
        if thread is None or closed:
            return
        with suppress(ThreadFailed):
            thread.start(Call(self._end, lambda _: thread.stop()))
        if wait and not sys.is_finalizing() and not thread.is_current:
            thread.join()

    async def _end(self) -> None:
        """Close the client, and wait until its running calls have failed."""
        await self.client.close()
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        if calls:
            await asyncio.wait(calls, timeout=2 * CLOSE_TIMEOUT)  # a call may have to close a connection


async def _next(values: AsyncGenerator[T, None]) -> T:
    return await anext(values)


async def _end(values: AsyncGenerator[Any, None]) -> None:
    await values.aclose()


def _result(call: Call[T]) -> T:
    try:
        return call.result()
    except ThreadFailed:  # closing gave it up
        closed = BrokerGone(CLOSED)
        closed.maybe_sent = True
        raise closed from None
