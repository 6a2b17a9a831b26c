"""The asynchronous producer client: requests out, records back over direct reply-to, on one connection for many tasks."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TypedDict, Unpack
from uuid import UUID, uuid4

import aiormq
import orjson
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from aiormq.exceptions import DeliveryError, PublishError
from pamqp import commands as spec
from pydantic import BaseModel
from pydantic_core import to_json

from worker.backoff import Backoff
from worker.broker.session import BrokerRefused, BrokerUnavailable, connect
from worker.client.errors import BrokerGone, ClientError, FlowRunRefused, NoReply, NotRoutable, NotTaken
from worker.contract.message import DIRECT_REPLY_TO
from worker.contract.record import FlowRunRecord
from worker.contract.request import CreateFlowRun

DEFAULT_QUEUE = "flow-runs.create"
DEFAULT_TIMEOUT = 30.0


class FlowRunFields(TypedDict, total=False):
    """The optional fields of a request; :class:`worker.contract.request.CreateFlowRun` says what each means."""

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
        """Whether this request made the run."""
        return self.status == 201


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes


class FlowRunClient:
    """Creates flow runs by way of the request queue.

    One client serves any number of tasks of one event loop. It connects when it is first used and again when the
    connection was lost; a request is published anew then, with the same ``message_id`` and the same bytes, which makes no
    second run.

    Args:
        url: the broker, ``amqp://`` or ``amqps://``.
        queue: the request queue.
        timeout: seconds for a request from the call to its reply, reconnects included.
    """

    def __init__(self, url: str, *, queue: str = DEFAULT_QUEUE, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._url = url
        self._queue = queue
        self._timeout = timeout
        self._link: _Link | None = None
        self._linking = asyncio.Lock()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls that wait for a reply end with :class:`BrokerGone`."""
        self._closed = True
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def create_flow_run(self, flow_id: UUID | str, **fields: Unpack[FlowRunFields]) -> FlowRunRecord:
        """Create a run, or get the one that has this idempotency key.

        Raises:
            FlowRunRefused: the worker refuses it (:class:`InvalidFlowRun` and others by status).
            NoReply, NotRoutable, NotTaken, BrokerGone: there is no answer.
        """
        outcome = await self.request({"flow_id": flow_id, **fields})
        assert outcome.record is not None
        return outcome.record

    async def request(
        self, request: Mapping[str, Any] | CreateFlowRun | bytes, *, headers: Mapping[str, Any] | None = None
    ) -> CreateOutcome:
        """Send a request and wait for its reply; as :meth:`create_flow_run`, with the status besides the record.

        Args:
            request: the body's fields, a model, or the JSON itself.
            headers: AMQP headers, such as ``x-prefect-api-version`` and ``traceparent``.
        """
        message = _Message.of(request, headers, reply_to=DIRECT_REPLY_TO)
        reply = await self._within_timeout(self._call(message))
        if reply.status >= 400:
            raise FlowRunRefused.from_reply(reply.status, orjson.loads(reply.body))
        return CreateOutcome(0, reply.status, FlowRunRecord.model_validate_json(reply.body))

    async def publish(
        self, request: Mapping[str, Any] | CreateFlowRun | bytes, *, headers: Mapping[str, Any] | None = None
    ) -> str:
        """Publish a request and want no reply; returns its ``message_id`` once the broker has taken it over.

        Raises:
            NotRoutable, NotTaken, BrokerGone: the broker has not.
        """
        message = _Message.of(request, headers, reply_to=None)
        await self._within_timeout(self._publish(message))
        return message.message_id

    async def create_many(
        self,
        requests: Iterable[Mapping[str, Any] | CreateFlowRun] | AsyncIterable[Mapping[str, Any] | CreateFlowRun],
        *,
        concurrency: int = 500,
    ) -> AsyncIterator[CreateOutcome]:
        """Send many requests and give their outcomes as they come, which is not the order in which they were given.

        Requests are taken from the iterable only as others are answered, so memory stays bounded however many they are.

        Args:
            concurrency: how many wait for a reply at the most.
        """
        source = enumerate_any(requests)
        waiting: set[asyncio.Task[CreateOutcome]] = set()
        exhausted = False
        try:
            while waiting or not exhausted:
                while not exhausted and len(waiting) < concurrency:
                    try:
                        index, request = await anext(source)
                    except StopAsyncIteration:
                        exhausted = True
                    else:
                        waiting.add(asyncio.create_task(self._outcome(index, request)))
                if waiting:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        yield task.result()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _outcome(self, index: int, request: Mapping[str, Any] | CreateFlowRun) -> CreateOutcome:
        try:
            outcome = await self.request(request)
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

    async def _call(self, message: "_Message") -> _Reply:
        while True:
            link = await self._linked()
            try:
                return await link.call(self._queue, message)
            except _LinkLost:
                continue

    async def _publish(self, message: "_Message") -> None:
        while True:
            link = await self._linked()
            try:
                return await link.publish(self._queue, message)
            except _LinkLost:
                continue

    async def _linked(self) -> "_Link":
        async with self._linking:
            backoff = Backoff()
            while self._link is None or self._link.lost:
                if self._closed:
                    raise BrokerGone("The client is closed.")
                try:
                    self._link = await _Link.open(self._url)
                except BrokerUnavailable as error:
                    if backoff.tries >= 5:
                        raise BrokerGone(str(error)) from error
                    await backoff.sleep()
                except BrokerRefused as error:
                    raise BrokerGone(str(error)) from error
            return self._link


@dataclass(frozen=True, slots=True)
class _Message:
    """A request as it is published, and published again, to the letter."""

    message_id: str
    body: bytes
    headers: dict[str, Any] | None
    reply_to: str | None

    @classmethod
    def of(
        cls,
        request: Mapping[str, Any] | CreateFlowRun | bytes,
        headers: Mapping[str, Any] | None,
        reply_to: str | None,
    ) -> "_Message":
        if isinstance(request, bytes):
            body = request
        elif isinstance(request, BaseModel):
            body = request.model_dump_json(exclude_unset=True).encode()
        else:
            body = to_json({name: value for name, value in request.items() if value is not None})
        return cls(uuid4().hex, body, dict(headers) if headers else None, reply_to)

    @property
    def properties(self) -> spec.Basic.Properties:
        return spec.Basic.Properties(
            content_type="application/json",
            headers=self.headers,
            delivery_mode=2,
            correlation_id=self.message_id if self.reply_to else None,
            reply_to=self.reply_to,
            message_id=self.message_id,
        )


class _LinkLost(Exception):
    """The connection ended under a call."""


class _Link:
    """One connection with one channel: direct reply-to wants both directions on the same."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self._connection = connection
        self._channel = channel
        self._replies: dict[str, asyncio.Future[_Reply]] = {}
        channel.closing.add_done_callback(self._closed)

    @classmethod
    async def open(cls, url: str) -> "_Link":
        connection = await connect(url, name="flow-run-client")
        channel = await connection.channel()
        link = cls(connection, channel)
        await channel.basic_consume(DIRECT_REPLY_TO, link._on_reply, no_ack=True)
        return link

    @property
    def lost(self) -> bool:
        return bool(self._channel.is_closed)

    async def close(self) -> None:
        with suppress(Exception):
            await self._connection.close()

    async def call(self, queue: str, message: _Message) -> _Reply:
        reply: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()
        self._replies[message.message_id] = reply
        try:
            await self.publish(queue, message)
            return await reply
        finally:
            self._replies.pop(message.message_id, None)
            reply.cancel()

    async def publish(self, queue: str, message: _Message) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._channel.basic_publish(message.body, routing_key=queue, properties=message.properties, mandatory=True)
            except PublishError:
                raise NotRoutable(f"There is no queue '{queue}': has a worker declared it?") from None
            except DeliveryError:
                if backoff.tries >= 5:
                    raise NotTaken(f"The broker does not take the message: the queue '{queue}' is full.") from None
                await backoff.sleep()
            except (aiormq.AMQPError, ConnectionError, RuntimeError) as error:
                raise _LinkLost(str(error)) from error
            else:
                return

    async def _on_reply(self, message: DeliveredMessage) -> None:
        properties = message.header.properties
        reply = self._replies.get(properties.correlation_id or "")
        status = (properties.headers or {}).get("status")
        if reply is not None and not reply.done() and isinstance(status, int):
            reply.set_result(_Reply(status, message.body))

    def _closed(self, _: asyncio.Future[Any]) -> None:
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(_LinkLost("the connection to the broker is gone"))


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
