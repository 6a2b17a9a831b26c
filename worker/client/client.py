"""The asynchronous producer client: requests out, records back over direct reply-to, on one connection for many tasks."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self, TypedDict, Unpack
from uuid import UUID, uuid4

import orjson
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from aiormq.exceptions import (
    AMQPChannelError,
    AMQPError,
    ChannelAccessRefused,
    ConnectionFrameError,
    ConnectionNotAllowed,
    DeliveryError,
    PublishError,
)
from pamqp import commands as spec
from pydantic import BaseModel
from pydantic_core import to_json

from worker.backoff import Backoff
from worker.broker.session import BrokerRefused, BrokerUnavailable, connect
from worker.client.errors import (
    AccessRefused,
    BrokerGone,
    ClientError,
    FlowRunRefused,
    MessageRefused,
    NoReply,
    NotRoutable,
    NotSerializable,
    NotTaken,
)
from worker.contract.message import DIRECT_REPLY_TO
from worker.contract.record import FlowRunRecord
from worker.contract.request import CreateFlowRun

DEFAULT_QUEUE = "flow-runs.create"
DEFAULT_TIMEOUT = 30.0
# A broker that takes the connection and then says nothing counts as away after this many seconds, as it does for a connection.
OPEN_TIMEOUT = 10.0
CLOSE_TIMEOUT = 5.0


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
        """Whether this request made the run.

        A request may reach a worker twice, as after a lost connection, and is answered 200 then, with the run that it made
        itself. Without an idempotency key that is told; with one it can't be, and this is False.
        """
        return self.status == 201 or (self.record is not None and not self.record.idempotency_key)


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
        self._queue = queue
        self._timeout = timeout
        self._line = _Line(url, Backoff())
        # No pause: each loss there is the end of a request, or sends it back to the other line.
        self._trial_line = _Line(url, Backoff(first=0))
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
        self, flow_id: UUID | str, *, headers: Mapping[str, Any] | None = None, **fields: Unpack[FlowRunFields]
    ) -> FlowRunRecord:
        """Create a run, or get the one that has this idempotency key.

        Args:
            headers: AMQP headers, such as ``x-prefect-api-version`` and ``traceparent``; no field of the run.

        Raises:
            FlowRunRefused: the worker refuses it (:class:`InvalidFlowRun` and others by status).
            NotSerializable, MessageRefused, AccessRefused, NotRoutable, NotTaken: it was not sent, or the broker refuses it.
            NoReply, BrokerGone: there is no answer.
        """
        outcome = await self.request({"flow_id": flow_id, **fields}, headers=headers)
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
        reply = await self._within_timeout(self._send(message))
        if reply.status >= 400:
            raise FlowRunRefused.from_reply(reply.status, orjson.loads(reply.body))
        return CreateOutcome(0, reply.status, FlowRunRecord.model_validate_json(reply.body))

    async def publish(
        self, request: Mapping[str, Any] | CreateFlowRun | bytes, *, headers: Mapping[str, Any] | None = None
    ) -> str:
        """Publish a request and want no reply; returns its ``message_id`` once the broker has taken it over.

        Raises:
            NotSerializable, MessageRefused, AccessRefused, NotRoutable, NotTaken, BrokerGone: the broker has not.
            NoReply: it has not said so in time.
        """
        message = _Message.of(request, headers, reply_to=None)
        await self._within_timeout(self._send(message))
        return message.message_id

    async def create_many(
        self,
        requests: Iterable[Mapping[str, Any] | CreateFlowRun] | AsyncIterable[Mapping[str, Any] | CreateFlowRun],
        *,
        concurrency: int = 500,
        headers: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[CreateOutcome]:
        """Send many requests and give their outcomes as they come, which is not the order in which they were given.

        The next request is awaited while others are answered, and is taken only when there is room for it, so memory stays
        bounded however many they are. What the iterable raises is raised, and ends all.

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

    async def _send(self, message: "_Message") -> "_Reply | None":
        """Publish a message until the broker takes it; returns the reply, if it wants one.

        When the broker closes a channel over a message, it doesn't say which. All that were being published then are tried
        again one by one, on another connection, and the one that ends it again was it.
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
            except _LinkLost:
                alone = False
            except _LinkRefused as refused:
                if alone:
                    raise MessageRefused(f"The broker refuses the message: {refused}") from refused
                alone = True


class _Line:
    """A way to the broker: a link that is opened when it is first wanted, and again when it was lost, after a pause.

    Args:
        pauses: how long they are; from the first on again after a link on which the broker has answered.
    """

    def __init__(self, url: str, pauses: Backoff) -> None:
        self._url = url
        self._pauses = pauses
        self._link: _Link | None = None
        self._opening = asyncio.Lock()
        self._closed = asyncio.Event()

    async def link(self) -> "_Link":
        """The link.

        Raises:
            BrokerGone, AccessRefused: there is none to be had.
        """
        async with self._opening:
            if self._link is not None and self._link.lost:
                await self._link.close()
                if self._link is not None and self._link.answered:
                    self._pauses.reset()
                self._link = None
                await self._pause(self._pauses.next_delay())
            backoff = Backoff()
            while self._link is None:
                if self._closed.is_set():
                    raise BrokerGone("The client is closed.")
                try:
                    self._link = await _Link.open(self._url)
                except BrokerUnavailable as error:
                    if backoff.tries >= 5:
                        raise BrokerGone(str(error)) from error
                    await self._pause(backoff.next_delay())
                except BrokerRefused as error:
                    raise BrokerGone(str(error)) from error
                else:
                    if self._closed.is_set():
                        await self.close()
            return self._link

    async def close(self) -> None:
        self._closed.set()
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until the line is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()


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
        try:
            if isinstance(request, bytes):
                body = request
            elif isinstance(request, BaseModel):
                body = request.model_dump_json(exclude_unset=True).encode()
            else:
                body = to_json({name: value for name, value in request.items() if value is not None})
            message = cls(uuid4().hex, body, dict(headers) if headers else None, reply_to)
            if headers:
                message.properties.marshal()
        except Exception as error:  # a request's own values say how they are written, and may raise anything
            raise NotSerializable(f"The request can't be written: {error}") from error
        return message

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


class _LinkRefused(Exception):
    """The broker ended the channel, or the connection, over something that was being published."""


class _Link:
    """One connection with one channel: direct reply-to wants both directions on the same.

    A channel that the broker closed is not opened again on its connection: all of it is given up for a new one.

    Attributes:
        answered: whether the broker has said anything to a publication.
    """

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel, deaf: AccessRefused | None = None) -> None:
        self.answered = False
        self._connection = connection
        self._channel = channel
        self._deaf = deaf
        self._replies: dict[str, asyncio.Future[_Reply | None]] = {}
        channel.closing.add_done_callback(self._closed)

    @classmethod
    async def open(cls, url: str) -> "_Link":
        """Connect, and consume replies; a user who may not do that can still publish what wants none.

        Raises:
            BrokerUnavailable, BrokerRefused: as :func:`worker.broker.session.connect`.
            AccessRefused: the user may have no channel.
        """
        connection = await connect(url, name="flow-run-client")
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                with _told_as_loss(connection):
                    return await cls._open_on(connection)
        except BaseException as error:
            await _close(connection)
            if isinstance(error, ConnectionNotAllowed):
                raise AccessRefused(f"The broker refuses a channel: {error}") from error
            if isinstance(error, (AMQPError, TimeoutError, _LinkLost)):
                raise BrokerUnavailable(f"The broker does not let a channel be opened: {error}") from error
            raise

    @classmethod
    async def _open_on(cls, connection: AbstractConnection) -> "_Link":
        try:
            link = cls(connection, await connection.channel())
            await link._channel.basic_consume(DIRECT_REPLY_TO, link._on_reply, no_ack=True)
        except ChannelAccessRefused as error:
            deaf = AccessRefused(f"The broker refuses to let this user consume replies: {error}")
            return cls(connection, await connection.channel(), deaf)
        return link

    @property
    def lost(self) -> bool:
        return bool(self._channel.is_closed)

    async def close(self) -> None:
        await _close(self._connection)

    async def publish(self, queue: str, message: _Message) -> "asyncio.Future[_Reply | None]":
        """Publish with a confirm; returns what the reply will be (None at once for a message that wants none).

        Raises:
            NotRoutable, NotTaken, AccessRefused: this is final.
            _LinkRefused: the broker ended the link over this message, or over another one of that moment.
            _LinkLost: the link ended, by whatever else.
        """
        if message.reply_to and self._deaf:
            raise AccessRefused(str(self._deaf))
        reply: asyncio.Future[_Reply | None] = asyncio.get_running_loop().create_future()
        reply.add_done_callback(lambda _: self._forget(message, reply))
        if message.reply_to:
            self._replies[message.message_id] = reply
        else:
            reply.set_result(None)
        try:
            await self._publish(queue, message)
        except BaseException:
            reply.cancel()
            raise
        return reply

    async def _publish(self, queue: str, message: _Message) -> None:
        backoff = Backoff()
        while True:
            try:
                with _told_as_loss(self._channel):
                    await self._channel.basic_publish(
                        message.body, routing_key=queue, properties=message.properties, mandatory=True
                    )
            except PublishError:
                self.answered = True
                raise NotRoutable(f"There is no queue '{queue}': has a worker declared it?") from None
            except DeliveryError:
                self.answered = True
                if backoff.tries >= 5:
                    raise NotTaken(f"The broker does not take the message: the queue '{queue}' is full.") from None
                await backoff.sleep()
            except ChannelAccessRefused as error:
                # Of the user and the exchange, not of the message: so it is for all that were being published.
                self.answered = True
                raise AccessRefused(f"The broker refuses to let this user publish: {error}") from error
            except (AMQPChannelError, ConnectionFrameError) as error:
                self.answered = True
                raise _LinkRefused(str(error)) from error
            else:
                self.answered = True
                return

    async def _on_reply(self, message: DeliveredMessage) -> None:
        properties = message.header.properties
        reply = self._replies.get(properties.correlation_id or "")
        status = (properties.headers or {}).get("status")
        if reply is not None and not reply.done() and isinstance(status, int):
            reply.set_result(_Reply(status, message.body))

    def _forget(self, message: _Message, reply: "asyncio.Future[_Reply | None]") -> None:
        self._replies.pop(message.message_id, None)
        if not reply.cancelled():
            reply.exception()  # asked for, so that none is complained of where publishing has told the same already

    def _closed(self, _: asyncio.Future[Any]) -> None:
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(_LinkLost("the connection to the broker is gone"))


@contextmanager
def _told_as_loss(resource: AbstractConnection | AbstractChannel) -> Iterator[None]:
    """Raise :class:`_LinkLost` for all the ways in which aiormq ends a wait when a channel or its connection ends.

    Besides its own errors they are a bare ``Exception``, when the connection's end was read with its last frames, and a
    ``CancelledError`` in a task that nobody cancelled, after missed heartbeats and when we close it. What the broker says to
    what was published, and the errors by which it ends a channel, pass as they are.
    """
    task = asyncio.current_task()
    cancelling = task.cancelling() if task else 0
    try:
        yield
    except (DeliveryError, AMQPChannelError, ConnectionFrameError, ConnectionNotAllowed):
        raise
    except asyncio.CancelledError as error:
        if not resource.is_closed or (task and task.cancelling() > cancelling):
            raise
        raise _LinkLost("the connection to the broker is gone") from error
    except Exception as error:
        if not resource.is_closed and not isinstance(error, (AMQPError, ConnectionError, RuntimeError)):
            raise
        raise _LinkLost(str(error)) from error


async def _close(connection: AbstractConnection) -> None:
    with suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await connection.close()


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
