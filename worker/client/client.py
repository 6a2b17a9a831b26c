"""The asynchronous client. Tasks share one connection. Replies come by direct reply-to."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Self, TypedDict, Unpack
from uuid import UUID

import aio_pika

from ..broker.connection import ChannelLost
from ..contract.kinds import FROM_DEPLOYMENT
from ..contract.message import DIRECT_REPLY_TO
from ..contract.record import FlowRunRecord
from ..tasks.backoff import Backoff
from ..urls.broker import check_urls
from . import errors
from .connection import Reconnector, Sending
from .message import Headers, Request, build_message
from .replies import Reply

DEFAULT_QUEUE = "flow-runs.create"
DEFAULT_TIMEOUT = 30.0
# Tries to publish to a full queue, over some 2 seconds.
PUBLISH_TRIES = 5

CLOSED = "The client is closed."


class _FieldsOfBoth(TypedDict, total=False):
    name: str
    state: Mapping[str, Any] | str
    parameters: Mapping[str, Any]
    context: Mapping[str, Any]
    parent_task_run_id: UUID | str
    infrastructure_document_id: UUID | str
    empirical_policy: Mapping[str, Any]
    tags: list[str]
    labels: Mapping[str, bool | int | float | str]
    idempotency_key: str
    work_queue_name: str
    job_variables: Mapping[str, Any]


class FlowRunFields(_FieldsOfBoth, total=False):
    """A request's optional fields, which :class:`worker.contract.request.CreateFlowRun` explains.
    In all requests of the client a state may be just its type, such as ``"SCHEDULED"``.
    """

    flow_version: str
    work_pool_name: str
    deployment_id: UUID | str


class DeploymentRunFields(_FieldsOfBoth, total=False):
    """The same for a run of a deployment, which
    :class:`worker.contract.deployment_request.CreateFlowRunFromDeployment` explains.
    """

    enforce_parameter_schema: bool


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

    One client serves any number of tasks of one event loop. It connects at its first request, and
    again after a lost connection. Then it publishes each unanswered message again, unchanged, with
    its ``message_id``: that makes no second run. Each method takes ``headers``, AMQP headers such
    as ``traceparent``, and ``timeout``, in seconds, which overrides the client's for this call.

    Args:
        url: the broker's URL, ``amqp://`` or ``amqps://``. Several URLs are separated by commas:
            the first that answers is used.
        queue: the request queue.
        timeout: seconds from a call to its reply, reconnects included.

    Raises:
        InvalidURL: the URL is wrong.
    """

    def __init__(self, url: str, *, queue: str = DEFAULT_QUEUE, timeout: float = DEFAULT_TIMEOUT) -> None:
        try:
            check_urls(url)
        except ValueError as error:
            raise errors.InvalidURL(f"The broker's URL {error}") from None
        self._queue = queue
        self._timeout = timeout
        self._reconnector = Reconnector(url, Backoff())
        # No pause: a loss of this connection only affects one request.
        self._trial_reconnector = Reconnector(url, Backoff(first=0))
        self._trial = asyncio.Lock()
        self._calls: set[asyncio.Timeout] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection for good, within seconds. Running and later calls end with
        :class:`BrokerGone`. A request that the broker has is still served.
        """
        self._closed = True
        for call in self._calls:
            if not call.expired():
                call.reschedule(0)
        await self._reconnector.close()
        await self._trial_reconnector.close()

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
        request = {"flow_id": flow_id, **_checked(fields, FlowRunFields)}
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
        request: dict[str, Any] = _checked(fields, DeploymentRunFields)
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
            ValueError: ``concurrency`` is below 1.
        """
        check_concurrency(concurrency)
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
        seconds = self._timeout if timeout is None else timeout
        sending = Sending()
        try:
            async with asyncio.timeout(seconds) as call:
                self._calls.add(call)
                return await self._publish_until_taken(message, sending)
        except TimeoutError:
            if self._closed:
                raise errors.BrokerGone(CLOSED) from None
            raise _time_over(seconds, str(message.message_id), sending) from None
        finally:
            self._calls.discard(call)

    async def _publish_until_taken(self, message: aio_pika.Message, sending: Sending) -> Reply | None:
        """Publish a message until the broker accepts it. Returns the reply, if one is wanted.

        The broker closes a channel without naming the message it refuses. So each message that was
        being published is tried again alone, on another connection. A message that closes that
        channel as well is the refused one.
        """
        alone, refusals = False, Backoff()
        while True:
            try:
                if alone:
                    async with self._trial:
                        reply = await self._trial_reconnector.publish(self._queue, message, sending)
                else:
                    reply = await self._reconnector.publish(self._queue, message, sending)
                return await reply if reply else None
            except ChannelLost:
                alone = False
            except errors.MessageRefused:
                if alone:
                    raise
                alone = True
            except errors.NotTaken:
                if refusals.tries >= PUBLISH_TRIES:
                    raise
                await refusals.sleep()


def _time_over(seconds: float, message_id: str, sending: Sending) -> errors.NoReply:
    """The error for a timeout of the connection, the broker's confirm or the reply."""
    if sending.connection is None:
        told = f"No connection to the broker within {seconds:g} seconds; the message was not sent."
        return errors.NotConfirmed(told, message_id)
    if sending.confirmed:
        told = (
            f"No reply within {seconds:g} seconds to the message {message_id}. It may be at the "
            "broker and may still be served; is a worker running?"
        )
        return errors.NoReply(told, message_id)
    told = f"No confirm of the broker within {seconds:g} seconds for the message {message_id}"
    if sending.connection.blocked is not None:
        told += (
            f": it takes no publications for now, since it is {sending.connection.blocked} "
            "(connection.blocked, an alarm)"
        )
    return errors.NotConfirmed(f"{told}. It may still take the message.", message_id)


def _checked(fields: Any, known: type[Any]) -> dict[str, Any]:
    """The fields of a request. Raises TypeError for an unknown one."""
    names = known.__annotations__
    for name in fields.keys() - names.keys():
        near = get_close_matches(name, names, n=1)
        raise TypeError(f"A flow run has no field '{name}'" + "".join(f"; is it '{each}'?" for each in near))
    return dict(fields)


def check_concurrency(concurrency: int) -> None:
    """Raise ValueError unless at least one request may be under way."""
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}, and has to be at least 1")


def named_deployment(deployment: UUID | str) -> dict[str, Any]:
    """The field with a deployment's id or name."""
    try:
        return {"deployment_id": UUID(str(deployment))}
    except ValueError:
        return {"deployment_name": deployment}


async def _one_by_one(requests: Iterable[Request]) -> AsyncIterator[Request]:
    for request in requests:
        yield request
