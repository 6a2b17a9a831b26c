"""Sends the messages of one event loop until they are answered, or until their time is over. Waits
there for the ends of runs.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from ..broker.connection import ChannelLost
from ..contract.kinds import READ
from ..contract.message import DIRECT_REPLY_TO
from ..contract.record import FlowRunRecord
from ..contract.topology import QueueNames
from ..tasks.backoff import Backoff
from . import errors
from .connection import Progress, Sending
from .following import follow
from .message import ClientMessage, build_message
from .reconnector import CLOSED, LONGEST_PAUSE, Reached, Reconnector
from .replies import Reply
from .waits import Waiting, Waits

# Tries to publish to a full queue, over some 2 seconds.
PUBLISH_TRIES = 5


class Sender:
    """Sends messages over connections of its own, which belong to one event loop.

    Args:
        urls: URLs for :func:`worker.broker.connection.connect`.
        queue: the request queue.
    """

    def __init__(self, urls: str, queue: str, reached: Reached) -> None:
        self._queue = queue
        self._reconnector = Reconnector(urls, Backoff(longest=LONGEST_PAUSE), reached)
        # No pause: a refusal ends this connection, and concerns one message, which is not tried
        # again.
        self._trial_reconnector = Reconnector(urls, Backoff(first=0), reached)
        self._trial = asyncio.Lock()
        self._states_exchange = QueueNames(queue).states_exchange
        self._waits = Waits(self._reconnector, self._states_exchange, self._read)
        self._calls: set[asyncio.Timeout] = set()
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether there are connections to close."""
        return self._reconnector.current is not None or self._trial_reconnector.current is not None

    async def send(
        self, message: ClientMessage, seconds: float | None, expires: float | None = None
    ) -> Reply | None:
        """Publish a message, again after each loss of the connection. Returns its reply, if it
        wants one.

        Args:
            seconds: the timeout; None: never.
            expires: seconds until it expires in the queue, from now; None: never.

        Raises:
            ClientError: it is not confirmed, or not answered.
        """
        now = asyncio.get_running_loop().time()
        sending = Sending(message, None if expires is None else now + expires)
        try:
            async with self._limited(seconds):
                return await self._publish_until_taken(sending)
        except TimeoutError:
            if self._closed or seconds is None:
                error: errors.ClientError = errors.BrokerGone(CLOSED)
            else:
                error = self._time_over(seconds, sending)
            error.maybe_sent = sending.progress > Progress.NOT_SENT
            raise error from None
        except errors.ClientError as error:
            error.maybe_sent = sending.progress > Progress.NOT_SENT
            raise

    async def ready_to_wait(self, seconds: float) -> None:
        """Return once :meth:`wait` can begin. Raises the errors that it would raise at once.

        Args:
            seconds: the timeout.
        """
        try:
            async with self._limited(seconds):
                await self._waits.ready()
        except TimeoutError:
            raise self._not_connected(seconds) from None

    async def wait(self, waiting: Waiting, seconds: float | None) -> FlowRunRecord:
        """Wait for the end of a run.

        Args:
            seconds: the timeout; None: never.

        Raises:
            WaitTimedOut: it has not ended in time.
            ClientError: see :meth:`worker.client.waits.Waits.wait`.
        """
        try:
            async with self._limited(seconds):
                return await self._waits.wait(waiting)
        except TimeoutError:
            if self._closed or seconds is None:
                error: errors.ClientError = errors.BrokerGone(CLOSED)
            else:
                record = waiting.record()
                state = f"it is {record.state_name}" if record else "its state is not known"
                trouble = f" ({self._reconnector.trouble})" if self._reconnector.trouble else ""
                told = f"The run {waiting.run_id} has not ended within {seconds:g} seconds: {state}{trouble}."
                error = errors.WaitTimedOut(told)
            error.record = waiting.record()
            raise error from None
        except errors.ClientError as error:
            error.record = waiting.record()
            raise

    def states(self, key: str) -> AsyncGenerator[FlowRunRecord, None]:
        """Follow the states of a binding, see :func:`worker.client.following.follow`."""
        return follow(self._reconnector, self._states_exchange, key)

    async def close(self) -> None:
        """Close the connections for good, within seconds. Running and later calls end with
        :class:`BrokerGone`.
        """
        self._closed = True
        for call in self._calls:
            if not call.expired():
                call.reschedule(0)
        await asyncio.gather(self._reconnector.close(), self._trial_reconnector.close())

    @asynccontextmanager
    async def _limited(self, seconds: float | None) -> AsyncIterator[None]:
        """Raise TimeoutError after some seconds, or when the client is closed."""
        async with asyncio.timeout(seconds) as call:
            self._calls.add(call)
            try:
                yield
            finally:
                self._calls.discard(call)

    async def _read(self, run_id: UUID) -> FlowRunRecord:
        """Have a worker read a run. If none is running, the request waits for one."""
        request = {"id": str(run_id)}
        reply = await self.send(build_message(request, None, reply_to=DIRECT_REPLY_TO, type=READ.type), None)
        assert reply is not None
        return reply.record()

    async def _publish_until_taken(self, sending: Sending) -> Reply | None:
        """Publish a message until the broker accepts it. Returns the reply, if one is wanted.

        The broker closes a channel without naming the message it refuses. So each message that was
        being published is tried again alone, on another connection. A message that closes that
        channel as well is the refused one.
        """
        alone, before = False, Progress.NOT_SENT
        refusals, losses = Backoff(), Backoff()
        while True:
            try:
                if alone:
                    async with self._trial:
                        reply = await self._publish(self._trial_reconnector, sending)
                else:
                    before = sending.progress
                    reply = await self._publish(self._reconnector, sending)
                return await reply if reply else None
            except ChannelLost:
                alone, sending.connection = False, None
                await losses.sleep()
            except errors.MessageRefused:
                sending.connection = None
                if alone:
                    sending.progress = before
                    raise
                alone = True
            except errors.NotTaken:
                if refusals.tries >= PUBLISH_TRIES:
                    raise
                await refusals.sleep()

    async def _publish(self, reconnector: Reconnector, sending: Sending) -> "asyncio.Future[Reply] | None":
        connection = await reconnector.connection()
        try:
            reply = await connection.publish(self._queue, sending)
        except errors.ClientError:
            reconnector.answered()
            raise
        reconnector.answered()
        return reply

    def _time_over(self, seconds: float, sending: Sending) -> errors.ClientError:
        """The error for a timeout of the connection, the broker's confirm or the reply."""
        connection, message_id = sending.connection, sending.message_id
        if connection is None or connection.channel.is_closed:
            return self._not_connected(seconds)
        if sending.progress is Progress.CONFIRMED:
            return no_reply(seconds, message_id, expires=sending.expires is not None)
        return no_confirm(seconds, message_id, connection.blocked)

    def _not_connected(self, seconds: float) -> errors.BrokerGone:
        if self._closed:
            return errors.BrokerGone(CLOSED)
        trouble = self._reconnector.trouble or "it does not answer"
        return errors.BrokerGone(f"No connection to the broker within {seconds:g} seconds: {trouble}.")


def no_reply(seconds: float, message_id: str, *, expires: bool) -> errors.NoReply:
    """The error for a message without a reply in time."""
    told = f"No reply within {seconds:g} seconds to the message {message_id}. The broker has it, "
    if expires:
        told += "and it may still be served until it expires, or if a worker has taken it."
    else:
        told += "and it may still be served; is a worker running?"
    return errors.NoReply(told, message_id)


def no_confirm(seconds: float, message_id: str, blocked: str | None = None) -> errors.NotConfirmed:
    """The error for a message without a confirm in time.

    Args:
        blocked: why the broker blocks publishing, or None.
    """
    told = f"No confirm of the broker within {seconds:g} seconds for the message {message_id}"
    if blocked is not None:
        told += f": it takes no publications for now, since it is {blocked} (connection.blocked, an alarm)"
    return errors.NotConfirmed(f"{told}. It may still take the message.", message_id)
