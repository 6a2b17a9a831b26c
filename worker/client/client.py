"""The asynchronous client. The tasks of an event loop share one connection. Replies come by direct
reply-to.
"""

import asyncio
import os
import sys
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self, Unpack
from uuid import UUID

import aio_pika

from ..broker.connection import CLOSE_TIMEOUT
from ..contract.kinds import FROM_DEPLOYMENT
from ..contract.message import DIRECT_REPLY_TO
from ..contract.record import FlowRunRecord
from ..urls.broker import check_urls
from . import errors
from .fields import DeploymentRunFields, FlowRunFields, checked, named_deployment
from .message import Headers, Request, build_message
from .reconnector import CLOSED, Reached
from .replies import Reply
from .sender import Sender

DEFAULT_QUEUE = "flow-runs.create"
DEFAULT_TIMEOUT = 30.0

# Closings in the background. The event loop keeps only weak references to its tasks.
_closings: set[asyncio.Task[None]] = set()


@dataclass(frozen=True, slots=True)
class CreateOutcome:
    """The outcome of one request.

    Attributes:
        index: the request's place in the iterable, from 0.
        status: 201 created, 200 existing, 4xx refused, 0 no answer.
        record: the flow run, unless there is an error.
        error: the reason why there is no record.
    """

    index: int
    status: int
    record: FlowRunRecord | None = None
    error: errors.ClientError | None = None

    @property
    def created(self) -> bool:
        """Whether this request made the run.

        A request may reach a worker twice, for example after a lost connection. The second answer
        is 200 with the run of the first one. Without an idempotency key no other request can have
        made that run: this is True. With a key another request may have made it: this is False.
        """
        return self.status == 201 or (self.record is not None and not self.record.idempotency_key)


class FlowRunClient:
    """Creates flow runs through the request queue.

    One client serves any number of tasks. It connects at its first request, and again after a lost
    connection. Then it publishes each unanswered message again, unchanged, with its
    ``message_id``: that makes no second run. It has a connection for each event loop that uses it,
    and for each process: such a connection ends with its loop. Each method takes ``headers``, AMQP
    headers such as ``traceparent``, and ``timeout``, in seconds, which overrides the client's for
    this call.

    Args:
        url: the broker's URL, ``amqp://`` or ``amqps://``. Several URLs are separated by commas:
            the first that answers is used.
        queue: the request queue.
        timeout: seconds from a call to its reply, reconnects included.

    Raises:
        InvalidURL: the URL is wrong.
        TypeError, ValueError: the timeout is no positive number.
    """

    def __init__(self, url: str, *, queue: str = DEFAULT_QUEUE, timeout: float = DEFAULT_TIMEOUT) -> None:
        try:
            check_urls(url)
        except ValueError as error:
            raise errors.InvalidURL(f"The broker's URL {error}") from None
        self._url = url
        self._queue = queue
        self._timeout = check_timeout(timeout)
        self._reached = Reached()
        # By process and loop. A forked process never touches what belongs to its parent's loops:
        # they share sockets.
        self._senders: dict[tuple[int, asyncio.AbstractEventLoop], Sender] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) or sys.is_finalizing():  # or its URL was refused
            return
        unclosed = [(loop, sender) for loop, sender in self._living() if sender.is_open]
        if unclosed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        for loop, sender in unclosed:
            with suppress(RuntimeError):  # the loop was closed just now
                loop.call_soon_threadsafe(_close_later, sender)

    async def close(self) -> None:
        """Close the connections for good, within seconds. Running and later calls end with
        :class:`BrokerGone`. A request that the broker has is still served.
        """
        self._closed = True
        running = asyncio.get_running_loop()
        closing: list[asyncio.Future[None]] = []
        for loop, sender in self._living():
            if loop is running:
                closing.append(asyncio.ensure_future(sender.close()))
            elif loop.is_running():
                there = asyncio.run_coroutine_threadsafe(sender.close(), loop)
                closing.append(asyncio.wrap_future(there))
        if closing:
            await asyncio.wait(closing, timeout=2 * CLOSE_TIMEOUT)  # another loop may end meanwhile

    async def create_flow_run(
        self,
        flow_id: UUID | str,
        *,
        headers: Headers = None,
        timeout: float | None = None,
        **fields: Unpack[FlowRunFields],
    ) -> FlowRunRecord:
        """Create a run, or get the one that has this idempotency key.

        Raises:
            FlowRunRefused: the worker refuses the request (:class:`InvalidFlowRun` and others by
                status).
            NotSerializable, MessageRefused, AccessRefused, NotRoutable, NotTaken: the request was
                not sent or not accepted.
            NoReply, BrokerGone, UnreadableReply: there is no readable answer. Without a confirm of
                the broker it is :class:`NotConfirmed`, a NoReply.
            TypeError: a field is unknown.
        """
        request = {"flow_id": flow_id, **checked(fields, FlowRunFields)}
        outcome = await self.request(request, headers=headers, timeout=timeout)
        assert outcome.record is not None
        return outcome.record

    async def run_deployment(
        self,
        deployment: UUID | str,
        *,
        scheduled_time: datetime | None = None,
        headers: Headers = None,
        timeout: float | None = None,
        **fields: Unpack[DeploymentRunFields],
    ) -> FlowRunRecord:
        """Create a run of a deployment, or get the one that has this idempotency key.

        The deployment has the defaults for parameters, tags, labels, job variables and the work
        queue. The run is SCHEDULED, for a worker of the deployment's pool to execute.

        Args:
            deployment: ``FLOW NAME/DEPLOYMENT NAME``, or its id.
            scheduled_time: the run's start (default: now). Without a zone it is UTC.

        Raises:
            NotFound: the deployment does not exist.
            Conflict: the parameters don't fit its schema. Others: see :meth:`create_flow_run`.
        """
        request: dict[str, Any] = checked(fields, DeploymentRunFields)
        request |= named_deployment(deployment)
        if scheduled_time is not None:
            if fields.get("state") is not None:
                raise TypeError("A run has a state or a scheduled time, not both")
            details = {"scheduled_time": scheduled_time}
            request["state"] = {"type": "SCHEDULED", "state_details": details}
        outcome = await self.request(request, type=FROM_DEPLOYMENT.type, headers=headers, timeout=timeout)
        assert outcome.record is not None
        return outcome.record

    async def request(
        self,
        request: Request,
        *,
        type: str | None = None,
        headers: Headers = None,
        timeout: float | None = None,
    ) -> CreateOutcome:
        """Send a request and wait for its reply. Returns the status with the record. Raises the
        errors of :meth:`create_flow_run`.

        Args:
            request: the body's fields, a model, or the raw JSON.
            type: ``create_flow_run_from_deployment`` if the fields are for a run of a deployment. A
                model needs no type.
        """
        message = build_message(request, headers, reply_to=DIRECT_REPLY_TO, type=type)
        reply = await self._send(message, timeout)
        assert reply is not None
        return CreateOutcome(0, reply.status or 0, reply.record())

    async def publish(
        self,
        request: Request,
        *,
        type: str | None = None,
        headers: Headers = None,
        timeout: float | None = None,
    ) -> str:
        """Publish a request that wants no reply. Returns its ``message_id`` once the broker has
        confirmed it. Raises the errors of :meth:`create_flow_run`, and :class:`NotConfirmed`
        without a confirm in time.

        Args:
            request, type: see :meth:`request`.
        """
        message = build_message(request, headers, type=type)
        await self._send(message, timeout)
        return str(message.message_id)

    async def create_many(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        concurrency: int = 500,
        headers: Headers = None,
        timeout: float | None = None,
    ) -> AsyncIterator[CreateOutcome]:
        """Send many requests, and yield their outcomes as they arrive, in any order.

        A request is taken from the iterable only once there is room for it, so memory stays
        bounded. An error of a request is in its outcome. An error of the iterable is raised and
        ends all requests.

        Args:
            concurrency: most requests under way at once. A request is under way until its outcome
                is taken.
            timeout: seconds for each request.

        Raises:
            TypeError, ValueError: ``concurrency`` is below 1, or ``timeout`` is no positive number.
        """
        check_concurrency(concurrency)
        if timeout is not None:
            check_timeout(timeout)
        room = asyncio.Semaphore(concurrency)
        running: set[asyncio.Task[Any]] = set()
        ended: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()

        def start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
            task = asyncio.create_task(work)
            running.add(task)
            task.add_done_callback(ended.put_nowait)
            return task

        async def take() -> None:
            source = requests if isinstance(requests, AsyncIterable) else _one_by_one(requests)
            index = 0
            await room.acquire()
            async for request in source:
                start(self.outcome(index, request, headers, timeout))
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

    async def outcome(
        self, index: int, request: Request, headers: Headers = None, timeout: float | None = None
    ) -> CreateOutcome:
        """Like :meth:`request`, but returns errors in the outcome."""
        try:
            return replace(await self.request(request, headers=headers, timeout=timeout), index=index)
        except (errors.FlowRunRefused, errors.UnreadableReply) as answer:
            return CreateOutcome(index, answer.status or 0, error=answer)
        except errors.ClientError as error:
            return CreateOutcome(index, 0, error=error)

    async def _send(self, message: aio_pika.Message, timeout: float | None) -> Reply | None:
        if self._closed:
            raise errors.BrokerGone(CLOSED)
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        return await self._sender().send(message, seconds)

    def _sender(self) -> Sender:
        """The sender of the running event loop."""
        try:
            here = os.getpid(), asyncio.get_running_loop()
        except RuntimeError:
            raise errors.ClientError(
                "The client needs a running asyncio event loop. In other programs, such as with trio, "
                "use the blocking client, in a thread."
            ) from None
        sender = self._senders.get(here)
        if sender is None:
            for key in list(self._senders):
                if key[0] == here[0] and key[1].is_closed():
                    self._senders.pop(key, None)
            sender = self._senders[here] = Sender(self._url, self._queue, self._reached)
        return sender

    def _living(self) -> list[tuple[asyncio.AbstractEventLoop, Sender]]:
        """The event loops of this process that are not closed, with their senders."""
        pid = os.getpid()
        return [
            (loop, sender)
            for (process, loop), sender in list(self._senders.items())
            if process == pid and not loop.is_closed()
        ]


def check_timeout(timeout: float) -> float:
    """A timeout in seconds.

    Raises:
        TypeError, ValueError: it is no positive number.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is {timeout!r}, and has to be a number of seconds")
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout!r}, and has to be above 0")
    return timeout


def _close_later(sender: Sender) -> None:
    closing = asyncio.get_running_loop().create_task(sender.close())
    _closings.add(closing)
    closing.add_done_callback(_closings.discard)


def check_concurrency(concurrency: int) -> None:
    """Raise ValueError unless at least one request may be under way."""
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}, and has to be at least 1")


async def _one_by_one(requests: Iterable[Request]) -> AsyncIterator[Request]:
    for request in requests:
        yield request
