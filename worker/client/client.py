"""The asynchronous client. The tasks of an event loop share one connection. Replies come by direct
reply-to.
"""

import asyncio
import os
import sys
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Self, Unpack
from uuid import UUID

from ..broker.connection import CLOSE_TIMEOUT
from ..contract.kinds import FROM_DEPLOYMENT
from ..contract.message import DIRECT_REPLY_TO
from ..contract.record import FlowRunRecord
from ..urls.broker import check_urls
from . import errors
from .checking import check as check_message
from .fields import DeploymentRunFields, FlowRunFields, checked, named_deployment
from .many import check_concurrency, many
from .message import ClientMessage, Request, build_message
from .options import Expires, Headers, Options, Wait, check_timeout, check_wait, expiration
from .outcomes import CreateOutcome, PublishOutcome
from .reconnector import CLOSED, Reached
from .replies import Reply
from .sender import Sender
from .waits import OnState, Waiting, has_ended

DEFAULT_QUEUE = "flow-runs.create"
DEFAULT_TIMEOUT = 30.0

# Closings in the background. The event loop keeps only weak references to its tasks.
_closings: set[asyncio.Task[None]] = set()


class FlowRunClient:
    """Creates flow runs through the request queue.

    One client serves any number of tasks. It connects at its first request, and again after a lost
    connection. Then it publishes each unanswered message again, unchanged, with its
    ``message_id``: that makes no second run. It has a connection for each event loop that uses it,
    and for each process: such a connection ends with its loop. Each method takes the options of
    :class:`worker.client.options.Options`.

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
        expires: Expires = None,
        check: bool = True,
        wait: Wait = False,
        **fields: Unpack[FlowRunFields],
    ) -> FlowRunRecord:
        """Create a run, or get the one that has this idempotency key.

        Args:
            wait: whether to wait for the end of the run, as :meth:`wait_for_flow_run` does; a
                number is the limit in seconds, from the reply on. The record is then that of the
                final state.
            headers, timeout, expires, check: see :class:`worker.client.options.Options`.

        Raises:
            FlowRunRefused: the worker refuses the request, or it was found wrong before it was sent
                (:class:`InvalidFlowRun` and others by status).
            NotSerializable, MessageRefused, AccessRefused, NotRoutable, NotTaken: the request was
                not sent or not accepted.
            NoReply, BrokerGone, UnreadableReply: there is no readable answer. Without a confirm of
                the broker it is :class:`NotConfirmed`, a NoReply.
            StatesNotTold, WaitTimedOut: as of :meth:`wait_for_flow_run`. An error after the run was
                made has its record.
            TypeError: a field is unknown.
        """
        request = {"flow_id": flow_id, **checked(fields, FlowRunFields)}
        options: Options = {"headers": headers, "timeout": timeout, "expires": expires, "check": check}
        return await self.request_and_wait(request, wait, **options)

    async def run_deployment(
        self,
        deployment: UUID | str,
        *,
        scheduled_time: datetime | None = None,
        headers: Headers = None,
        timeout: float | None = None,
        expires: Expires = None,
        check: bool = True,
        wait: Wait = False,
        **fields: Unpack[DeploymentRunFields],
    ) -> FlowRunRecord:
        """Create a run of a deployment, or get the one that has this idempotency key.

        The deployment has the defaults for parameters, tags, labels, job variables and the work
        queue. The run is SCHEDULED, for a worker of the deployment's pool to execute.

        Args:
            deployment: ``FLOW NAME/DEPLOYMENT NAME``, or its id.
            scheduled_time: the run's start (default: now). Without a zone it is UTC.
            timeout: seconds for the reply, not for the end of the run. 0, with which Prefect's
                ``run_deployment`` does not wait, is the client's timeout.
            wait: see :meth:`create_flow_run`. Prefect's ``run_deployment`` waits by default.
            headers, expires, check: see :class:`worker.client.options.Options`.

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
        options: Options = {"headers": headers, "expires": expires, "check": check}
        if timeout != 0:
            options["timeout"] = timeout
        return await self.request_and_wait(request, wait, type=FROM_DEPLOYMENT.type, **options)

    async def wait_for_flow_run(self, run_id: UUID | str, *, timeout: float | None = None) -> FlowRunRecord:
        """Wait until a run has ended: COMPLETED, FAILED, CANCELLED or CRASHED. It may be any run in
        the database of workers with ``WORKER_STATES``.

        Returns the record with the first final state that is seen. If the run has ended already,
        that is at once. A run that failed may be run again later. All waits share one queue.

        Args:
            timeout: most seconds to wait (default: without limit).

        Raises:
            WaitTimedOut: it has not ended in time. ``record`` is the run's last known record.
            StatesNotTold: no worker publishes states.
            NotFound: there is no such run.
            AccessRefused: the user lacks a permission: to read NAME.states, and to configure, write
                and read queues that the broker names (``amq.gen-…``).
            BrokerGone, NotRoutable, UnreadableReply: as of :meth:`create_flow_run`.
            ValueError: ``run_id`` is no UUID.
        """
        waiting = Waiting(UUID(str(run_id)))
        return await self._open_sender().wait(waiting, None if timeout is None else check_timeout(timeout))

    async def states(self, binding: str = "#") -> AsyncGenerator[FlowRunRecord, None]:
        """Yield the record of each state that is published from now on, once each.

        States of the time without a connection are missed: to miss none, bind your own queue.

        Args:
            binding: a pattern of routing keys ``STATE_TYPE.FLOW_ID.DEPLOYMENT_ID.RUN_ID``, such as
                ``FAILED.#``, or ``*.*.*.RUN_ID`` for one run.

        Raises:
            StatesNotTold: no worker publishes states.
            AccessRefused, BrokerGone: as of :meth:`wait_for_flow_run`.
            ValueError: the binding is longer than 255 bytes.
        """
        async with aclosing(self._open_sender().states(binding)) as states:
            async for record in states:
                yield record

    async def request(
        self, request: Request, *, type: str | None = None, **options: Unpack[Options]
    ) -> CreateOutcome:
        """Send a request and wait for its reply. Returns the status with the record. Raises the
        errors of :meth:`create_flow_run`.

        Args:
            request: the body's fields, a model, or the raw JSON.
            type: the kind of request, such as ``create_flow_run_from_deployment``. A model needs no
                type, nor do fields with a deployment and without a flow.
        """
        message = build_message(request, options.get("headers"), reply_to=DIRECT_REPLY_TO, type=type)
        reply = await self._send(message, options)
        assert reply is not None
        return CreateOutcome(0, reply.status or 0, reply.record(), request=request)

    async def request_and_wait(
        self,
        request: Request,
        wait: Wait,
        *,
        type: str | None = None,
        on_reply: Callable[[CreateOutcome], object] | None = None,
        on_state: OnState | None = None,
        **options: Unpack[Options],
    ) -> FlowRunRecord:
        """Like :meth:`request`, and wait for the end of the run if ``wait`` says so. Where no
        states are published, the request is then not sent.

        Args:
            wait: see :meth:`create_flow_run`.
            on_reply: is called with the reply.
            on_state: is called with each state that is seen from then on, once.
        """
        limit = check_wait(wait)
        if wait is not False:
            await self._open_sender().ready_to_wait(self._seconds(options)[0])
        outcome = await self.request(request, type=type, **options)
        if on_reply is not None:
            on_reply(outcome)
        if wait is False:
            return outcome.run
        waiting = Waiting(outcome.run.id, on_state)
        waiting.see_read(outcome.run)
        if has_ended(outcome.run):
            return outcome.run
        try:
            return await self._open_sender().wait(waiting, limit)
        except errors.ClientError as error:
            error.maybe_sent = True
            raise

    async def publish(self, request: Request, *, type: str | None = None, **options: Unpack[Options]) -> str:
        """Publish a request that wants no reply. Returns its ``message_id`` once the broker has
        confirmed it. Raises the errors of :meth:`create_flow_run`, and :class:`NotConfirmed`
        without a confirm in time.

        Args:
            request, type: see :meth:`request`.
        """
        message = build_message(request, options.get("headers"), type=type)
        await self._send(message, options)
        return str(message.properties.message_id)

    def create_many(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        concurrency: int = 500,
        type: str | None = None,
        **options: Unpack[Options],
    ) -> AsyncIterator[CreateOutcome]:
        """Send many requests, and yield their outcomes as they arrive, in any order.

        A request is taken from the iterable only once there is room for it, so memory stays
        bounded. An error of a request is in its outcome. An error of the iterable is raised and
        ends all requests.

        Args:
            concurrency: most requests under way at once. A request is under way until its outcome
                is taken.
            type: see :meth:`request`; it holds for all requests but models.
            options: for each request; see :class:`worker.client.options.Options`.

        Raises:
            TypeError, ValueError: ``concurrency`` is below 1, or ``timeout`` is no positive number.
        """
        self._check_many(concurrency, options)
        return many(requests, partial(self.create_outcome, type=type, **options), concurrency)

    def publish_many(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        concurrency: int = 500,
        type: str | None = None,
        **options: Unpack[Options],
    ) -> AsyncIterator[PublishOutcome]:
        """Publish many requests that want no reply, and yield their outcomes as the broker confirms
        them, in any order. Otherwise like :meth:`create_many`.
        """
        self._check_many(concurrency, options)
        return many(requests, partial(self.publish_outcome, type=type, **options), concurrency)

    async def create_outcome(
        self, index: int, request: Request, *, type: str | None = None, **options: Unpack[Options]
    ) -> CreateOutcome:
        """Like :meth:`request`, but returns errors in the outcome."""
        try:
            return replace(await self.request(request, type=type, **options), index=index)
        except (errors.FlowRunRefused, errors.UnreadableReply) as answer:
            return CreateOutcome(index, answer.status or 0, error=answer, request=request)
        except errors.ClientError as error:
            return CreateOutcome(index, 0, error=error, request=request)

    async def publish_outcome(
        self, index: int, request: Request, *, type: str | None = None, **options: Unpack[Options]
    ) -> PublishOutcome:
        """Like :meth:`publish`, but returns errors in the outcome."""
        try:
            message_id = await self.publish(request, type=type, **options)
            return PublishOutcome(index, message_id, request=request)
        except errors.ClientError as error:
            return PublishOutcome(index, error=error, request=request)

    async def _send(self, message: ClientMessage, options: Options) -> Reply | None:
        seconds, expires = self._seconds(options)
        sender = self._open_sender()
        if options.get("check", True):
            check_message(message)
        return await sender.send(message, seconds, expires)

    def _seconds(self, options: Options) -> tuple[float, float | None]:
        """The seconds of the timeout and of the expiration."""
        timeout = options.get("timeout")
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        return seconds, expiration(options.get("expires"), seconds)

    def _check_many(self, concurrency: int, options: Options) -> None:
        check_concurrency(concurrency)
        self._seconds(options)

    def _open_sender(self) -> Sender:
        """The sender of the running event loop. Raises BrokerGone if the client is closed."""
        if self._closed:
            raise errors.BrokerGone(CLOSED)
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
            sender = self._senders[here] = self._new_sender()
        return sender

    def _new_sender(self) -> Sender:
        """Make a sender. The fake in :mod:`worker.client.testing` makes others."""
        return Sender(self._url, self._queue, self._reached)

    def _living(self) -> list[tuple[asyncio.AbstractEventLoop, Sender]]:
        """The event loops of this process that are not closed, with their senders."""
        pid = os.getpid()
        return [
            (loop, sender)
            for (process, loop), sender in list(self._senders.items())
            if process == pid and not loop.is_closed()
        ]


def _close_later(sender: Sender) -> None:
    closing = asyncio.get_running_loop().create_task(sender.close())
    _closings.add(closing)
    closing.add_done_callback(_closings.discard)
