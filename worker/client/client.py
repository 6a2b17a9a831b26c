"""The asynchronous client. Many tasks share one connection; replies come by direct reply-to."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Self, TypedDict, Unpack
from uuid import UUID

import aio_pika

from ..broker.connection import ChannelLost
from ..contract.message import DIRECT_REPLY_TO, FROM_DEPLOYMENT
from ..contract.record import FlowRunRecord
from ..tasks.backoff import Backoff
from ..urls.broker import check_urls
from . import errors
from .connection import Reconnector, Sending
from .message import Headers, Request, build_message
from .replies import Reply

DEFAULT_QUEUE = "flow-runs.create"
DEFAULT_TIMEOUT = 30.0
# How often a full queue is tried, over some 2 seconds.
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
    """The optional fields of a request; :class:`worker.contract.request.CreateFlowRun` says what
    each means. A state may be its type alone, such as ``"SCHEDULED"``, in any request of the
    client.
    """

    flow_version: str
    work_pool_name: str
    deployment_id: UUID | str


class DeploymentRunFields(_FieldsOfBoth, total=False):
    """The optional fields of a request for a run of a deployment, which
    :class:`worker.contract.deployment_request.CreateFlowRunFromDeployment` explains; as above.
    """

    enforce_parameter_schema: bool


@dataclass(frozen=True, slots=True)
class CreateOutcome:
    """What became of one request.

    Attributes:
        index: the request's place among those that were given, from 0.
        status: 201 created, 200 existing; 4xx refused; 0 where there was no answer.
        record: the flow run, unless there is an error.
        error: why there is no record.
    """

    index: int
    status: int
    record: FlowRunRecord | None = None
    error: errors.ClientError | None = None

    @property
    def created(self) -> bool:
        """Whether this request made the run.

        A request may reach a worker twice, for example after a lost connection. The second answer
        is 200 with the run that the first one made. Without an idempotency key nobody else can have
        made that run, and this is True. With one it may be another's, and this is False.
        """
        return self.status == 201 or (self.record is not None and not self.record.idempotency_key)


class FlowRunClient:
    """Creates flow runs by way of the request queue.

    One client serves any number of tasks of one event loop. It connects at its first request, and
    again after a lost connection. It then publishes again with the same ``message_id`` and the same
    bytes, which makes no second run. Each method takes ``headers``, the AMQP headers such as
    ``traceparent``, and ``timeout``, in seconds, which replaces the client's for this call.

    Args:
        url: the broker, ``amqp://`` or ``amqps://``; or several, separated by commas, of which the
            first that answers is used.
        queue: the request queue.
        timeout: seconds for a request from the call to its reply, reconnects included.

    Raises:
        InvalidURL: no broker can have this URL.
    """

    def __init__(self, url: str, *, queue: str = DEFAULT_QUEUE, timeout: float = DEFAULT_TIMEOUT) -> None:
        try:
            check_urls(url)
        except ValueError as error:
            raise errors.InvalidURL(f"The broker's URL {error}") from None
        self._queue = queue
        self._timeout = timeout
        self._reconnector = Reconnector(url, Backoff())
        # No pause: a connection that is lost here ends one request, or sends it back to the other
        # connection.
        self._trial_reconnector = Reconnector(url, Backoff(first=0))
        self._trial = asyncio.Lock()
        self._calls: set[asyncio.Timeout] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection for good, within seconds. Running calls and later ones end with
        :class:`BrokerGone`. A request that the broker has taken is still served.
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
            FlowRunRefused: the worker refuses it (:class:`InvalidFlowRun` and others by status).
            NotSerializable, MessageRefused, AccessRefused, NotRoutable, NotTaken: it was not sent,
                or the broker refuses it.
            NoReply, BrokerGone, UnreadableReply: there is no answer, or none that can be read.
                :class:`NotConfirmed`, a NoReply, if the broker had not even confirmed the request.
            TypeError: there is no such field.
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

        The deployment gives what the request does not say: parameters, tags, labels, job variables
        and the work queue. The run is SCHEDULED, for a worker of the deployment's pool to execute.

        Args:
            deployment: ``FLOW NAME/DEPLOYMENT NAME``, or its id.
            scheduled_time: when the run is to start; now by default. UTC, if it does not say.

        Raises:
            NotFound: there is no such deployment.
            Conflict: the parameters do not fit its schema. And what :meth:`create_flow_run` raises.
        """
        request: dict[str, Any] = _checked(fields, DeploymentRunFields)
        request |= named_deployment(deployment)
        if scheduled_time is not None:
            if fields.get("state") is not None:
                raise TypeError("A run has a state or a scheduled time, not both")
            details = {"scheduled_time": scheduled_time}
            request["state"] = {"type": "SCHEDULED", "state_details": details}
        outcome = await self.request(request, type=FROM_DEPLOYMENT, headers=headers, timeout=timeout)
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
        """Send a request and wait for its reply. Raises what :meth:`create_flow_run` does, and
        returns the status beside the record.

        Args:
            request: the body's fields, a model, or the JSON itself, which is sent as it is.
            type: ``create_flow_run_from_deployment`` for fields of a run of a deployment. A model
                says itself which kind it is.
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
        """Publish a request that wants no reply, and return its ``message_id`` once the broker has
        taken it. Raises what :meth:`create_flow_run` does if the broker has not;
        :class:`NotConfirmed` if it has not in time.

        Args:
            request, type: as of :meth:`request`.
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
        """Send many requests and give their outcomes as they come, in any order.

        A request is taken from the iterable only when there is room for it, so memory stays bounded
        however many there are. An error of a request is in its outcome. An error of the iterable is
        raised, and ends everything.

        Args:
            concurrency: how many requests are under way at once, at the most. A request is under
                way until its outcome is taken.
            timeout: seconds for each request.

        Raises:
            ValueError: ``concurrency`` is not at least 1.
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
        """As :meth:`request`, but an error is in the outcome."""
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
        """Publish a message until the broker takes it; returns the reply, if it wants one.

        When the broker closes a channel over a message, it doesn't say which. So every message that
        was being published is tried again by itself, on another connection. The broker refuses the
        one that closes that connection's channel too.
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
    """What the time ran out at: connecting, the broker's confirm, or the reply."""
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
    """Fields of a request; raises TypeError for an unknown one."""
    names = known.__annotations__
    for name in fields.keys() - names.keys():
        near = get_close_matches(name, names, n=1)
        raise TypeError(f"A flow run has no field '{name}'" + "".join(f"; is it '{each}'?" for each in near))
    return dict(fields)


def check_concurrency(concurrency: int) -> None:
    """Raise ValueError unless there is room for one request: without it none would ever be sent."""
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}, and has to be at least 1")


def named_deployment(deployment: UUID | str) -> dict[str, Any]:
    """A deployment's id or name, in the field for it."""
    try:
        return {"deployment_id": UUID(str(deployment))}
    except ValueError:
        return {"deployment_name": deployment}


async def _one_by_one(requests: Iterable[Request]) -> AsyncIterator[Request]:
    for request in requests:
        yield request
