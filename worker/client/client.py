"""The asynchronous producer client: requests out, records back over direct reply-to, on one
connection for many tasks.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypedDict, Unpack
from uuid import UUID

import orjson

from worker.backoff import Backoff
from worker.client.errors import ClientError, FlowRunRefused, MessageRefused, NoReply
from worker.client.link import Line, LinkLost, LinkRefused, Message, Reply
from worker.contract.message import DIRECT_REPLY_TO
from worker.contract.record import FlowRunRecord
from worker.contract.request import CreateFlowRun

DEFAULT_QUEUE = "flow-runs.create"
DEFAULT_TIMEOUT = 30.0


class FlowRunFields(TypedDict, total=False):
    """The optional fields of a request; :class:`worker.contract.request.CreateFlowRun` says what
    each means.
    """

    name: str
    state: Mapping[str, Any]
    flow_version: str
    parameters: Mapping[str, Any]
    context: Mapping[str, Any]
    parent_task_run_id: UUID | str
    infrastructure_document_id: UUID | str
    empirical_policy: Mapping[str, Any]
    tags: list[str]
    labels: Mapping[str, bool | int | float | str]
    idempotency_key: str
    work_pool_name: str
    work_queue_name: str
    job_variables: Mapping[str, Any]
    deployment_id: UUID | str


@dataclass(frozen=True, slots=True)
class CreateOutcome:
    """What became of one request.

    Attributes:
        index: which one it was, from 0, in the order in which they were given.
        status: 201 created, 200 existing; 4xx refused; 0 where there was no answer.
        record: the flow run, unless there is an error.
        error: why there is no record.
    """

    index: int
    status: int
    record: FlowRunRecord | None = None
    error: ClientError | None = None

    @property
    def created(self) -> bool:
        """Whether this request made the run.

        A request may reach a worker twice, as after a lost connection, and is answered 200 then,
        with the run that it made itself. Without an idempotency key that is told; with one it can't
        be, and this is False.
        """
        return self.status == 201 or (self.record is not None and not self.record.idempotency_key)


class FlowRunClient:
    """Creates flow runs by way of the request queue.

    One client serves any number of tasks of one event loop. It connects when it is first used and
    again when the connection was lost; a request is published anew then, with the same
    ``message_id`` and the same bytes, which makes no second run.

    Args:
        url: the broker, ``amqp://`` or ``amqps://``.
        queue: the request queue.
        timeout: seconds for a request from the call to its reply, reconnects included.
    """

    def __init__(self, url: str, *, queue: str = DEFAULT_QUEUE, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._queue = queue
        self._timeout = timeout
        self._line = Line(url, Backoff())
        # No pause: each loss there is the end of a request, or sends it back to the other line.
        self._trial_line = Line(url, Backoff(first=0))
        self._trial = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. All calls that are under way end with :class:`BrokerGone`."""
        await self._line.close()
        await self._trial_line.close()

    async def create_flow_run(
        self,
        flow_id: UUID | str,
        *,
        headers: Mapping[str, Any] | None = None,
        **fields: Unpack[FlowRunFields],
    ) -> FlowRunRecord:
        """Create a run, or get the one that has this idempotency key.

        Args:
            headers: AMQP headers, such as ``x-prefect-api-version`` and ``traceparent``; no field
                of the run.

        Raises:
            FlowRunRefused: the worker refuses it (:class:`InvalidFlowRun` and others by status).
            NotSerializable, MessageRefused, AccessRefused, NotRoutable, NotTaken: it was not sent,
                or the broker refuses it.
            NoReply, BrokerGone: there is no answer.
        """
        outcome = await self.request({"flow_id": flow_id, **fields}, headers=headers)
        assert outcome.record is not None
        return outcome.record

    async def request(
        self, request: Mapping[str, Any] | CreateFlowRun | bytes, *, headers: Mapping[str, Any] | None = None
    ) -> CreateOutcome:
        """Send a request and wait for its reply; as :meth:`create_flow_run`, with the status
        besides the record.

        Args:
            request: the body's fields, a model, or the JSON itself.
            headers: AMQP headers, such as ``x-prefect-api-version`` and ``traceparent``.
        """
        message = Message.of(request, headers, reply_to=DIRECT_REPLY_TO)
        reply = await self._within_timeout(self._send(message))
        if reply.status >= 400:
            raise FlowRunRefused.from_reply(reply.status, orjson.loads(reply.body))
        return CreateOutcome(0, reply.status, FlowRunRecord.model_validate_json(reply.body))

    async def publish(
        self, request: Mapping[str, Any] | CreateFlowRun | bytes, *, headers: Mapping[str, Any] | None = None
    ) -> str:
        """Publish a request and want no reply; returns its ``message_id`` once the broker has taken
        it over.

        Raises:
            NotSerializable, MessageRefused, AccessRefused, NotRoutable, NotTaken, BrokerGone: the
                broker has not.
            NoReply: it has not said so in time.
        """
        message = Message.of(request, headers, reply_to=None)
        await self._within_timeout(self._send(message))
        return message.message_id

    async def create_many(
        self,
        requests: Iterable[Mapping[str, Any] | CreateFlowRun]
        | AsyncIterable[Mapping[str, Any] | CreateFlowRun],
        *,
        concurrency: int = 500,
        headers: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[CreateOutcome]:
        """Send many requests and give their outcomes as they come, which is not the order in which
        they were given.

        The next request is awaited while others are answered, and is taken only when there is room
        for it, so memory stays bounded however many they are. What the iterable raises is raised,
        and ends all.

        Args:
            concurrency: how many are taken, and their outcomes not yet, at the most.
            headers: AMQP headers that all of them get.
        """
        room = asyncio.Semaphore(concurrency)
        running: set[asyncio.Task[Any]] = set()
        ended: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()

        def start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
            task = asyncio.create_task(work)
            running.add(task)
            task.add_done_callback(ended.put_nowait)
            return task

        async def take() -> None:
            await room.acquire()
            async for index, request in enumerate_any(requests):
                start(self.outcome(index, request, headers))
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

    async def outcome(
        self, index: int, request: Mapping[str, Any] | CreateFlowRun, headers: Mapping[str, Any] | None = None
    ) -> CreateOutcome:
        """As :meth:`request`, with what goes wrong in the outcome."""
        try:
            outcome = await self.request(request, headers=headers)
        except FlowRunRefused as refused:
            return CreateOutcome(index, refused.status, error=refused)
        except ClientError as error:
            return CreateOutcome(index, 0, error=error)
        return CreateOutcome(index, outcome.status, outcome.record)

    async def _within_timeout(self, work: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout):
                return await work
        except TimeoutError:
            raise NoReply(
                f"No reply within {self._timeout:g} seconds. The request may be at the broker and may still be served; "
                "is a worker running?"
            ) from None

    async def _send(self, message: Message) -> Reply | None:
        """Publish a message until the broker takes it; returns the reply, if it wants one.

        When the broker closes a channel over a message, it doesn't say which. All that were being
        published then are tried again one by one, on another connection, and the one that ends it
        again was it.
        """
        alone = False
        while True:
            try:
                if alone:
                    async with self._trial:
                        reply = await (await self._trial_line.link()).publish(self._queue, message)
                else:
                    reply = await (await self._line.link()).publish(self._queue, message)
                return await reply
            except LinkLost:
                alone = False
            except LinkRefused as refused:
                if alone:
                    raise MessageRefused(f"The broker refuses the message: {refused}") from refused
                alone = True


async def enumerate_any(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[tuple[int, Any]]:
    """Number the items of either kind of iterable."""
    index = 0
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield index, item
            index += 1
    else:
        for item in items:
            yield index, item
            index += 1
