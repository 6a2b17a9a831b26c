"""The same client for scripts and notebooks, without async: it runs the asynchronous one on a
thread of its own.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Self, TypeVar, Unpack
from uuid import UUID

from worker.client.client import DEFAULT_QUEUE, DEFAULT_TIMEOUT, CreateOutcome, FlowRunFields
from worker.client.client import FlowRunClient as AsyncClient
from worker.contract.record import FlowRunRecord
from worker.contract.request import CreateFlowRun

T = TypeVar("T")


class FlowRunClient:
    """Creates flow runs, blocking; :class:`worker.client.FlowRunClient` says what each method does
    and raises.

    Safe from many threads. Close it, or use it in a ``with`` statement.
    """

    def __init__(self, url: str, *, queue: str = DEFAULT_QUEUE, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flow-run-client", daemon=True)
        self._thread.start()
        self._client = self._run(_make(url, queue, timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread."""
        if self._thread.is_alive():
            self._run(self._client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def create_flow_run(
        self,
        flow_id: UUID | str,
        *,
        headers: Mapping[str, Any] | None = None,
        **fields: Unpack[FlowRunFields],
    ) -> FlowRunRecord:
        """Create a run, or get the one that has this idempotency key."""
        return self._run(self._client.create_flow_run(flow_id, headers=headers, **fields))

    def request(
        self, request: Mapping[str, Any] | CreateFlowRun | bytes, *, headers: Mapping[str, Any] | None = None
    ) -> CreateOutcome:
        """Send a request and wait for its reply."""
        return self._run(self._client.request(request, headers=headers))

    def publish(
        self, request: Mapping[str, Any] | CreateFlowRun | bytes, *, headers: Mapping[str, Any] | None = None
    ) -> str:
        """Publish a request and want no reply."""
        return self._run(self._client.publish(request, headers=headers))

    def create_many(
        self,
        requests: Iterable[Mapping[str, Any] | CreateFlowRun],
        *,
        concurrency: int = 500,
        headers: Mapping[str, Any] | None = None,
    ) -> Iterator[CreateOutcome]:
        """Send many requests and give their outcomes as they come.

        The iterable is gone through in the caller's thread: outcomes that came while it was waited
        for are given before the next request is.
        """
        running: set[Future[CreateOutcome]] = set()
        ended: SimpleQueue[Future[CreateOutcome]] = SimpleQueue()

        def end() -> CreateOutcome:
            future = ended.get()
            running.discard(future)
            return future.result()

        try:
            for index, request in enumerate(requests):
                future = self._start(self._client.outcome(index, request, headers))
                running.add(future)
                future.add_done_callback(ended.put)
                while len(running) >= concurrency or not ended.empty():
                    yield end()
            while running:
                yield end()
        finally:
            for future in running:
                future.cancel()

    def _start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._start(work).result()


async def _make(url: str, queue: str, timeout: float) -> AsyncClient:
    return AsyncClient(url, queue=queue, timeout=timeout)
