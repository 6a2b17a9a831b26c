"""A queue of states at the broker: exclusive, named by the broker, on the client's connection. It
does not reconnect.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import aiormq
from aio_pika.abc import AbstractChannel
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from ..broker.connection import ChannelLost, close_quietly, lost_with
from ..contract.record import FlowRunRecord
from ..contract.states import STATE_MESSAGE
from .connection import ClientConnection
from .errors import AccessRefused, StatesNotTold
from .library_logs import of_the_client
from .replies import record_of


@dataclass(frozen=True, slots=True)
class Told:
    """A published state of a run.

    Attributes:
        id: the state's id.
        type: the state's type.
        run_id: the run's id.
        body: the record as JSON.
        tag: the delivery's tag.
    """

    id: str
    type: str
    run_id: str
    body: bytes
    tag: int

    def record(self) -> FlowRunRecord:
        """The record with this state. Raises ValueError or RecursionError if it can't be read."""
        return record_of(self.body)


class StatesQueue:
    """Consumes states. It ends with its channel, and the broker then deletes the queue.

    Args:
        exchange: of the states.
        on_told: gets each published state.
        on_lost: is called once when the queue has ended, however it ended.
    """

    def __init__(
        self,
        channel: AbstractChannel,
        exchange: str,
        on_told: Callable[[Told], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._exchange = exchange
        self._on_told = on_told
        self._on_lost = on_lost
        self._name = ""
        self._running: set[asyncio.Task[Any]] = set()
        channel.close_callbacks.add(lambda *_: self._lose())

    @classmethod
    async def open(
        cls,
        connection: ClientConnection,
        exchange: str,
        on_told: Callable[[Told], None],
        on_lost: Callable[[], None],
        *,
        key: str,
        prefetch: int = 0,
    ) -> Self:
        """Declare the queue, and bind it.

        Args:
            key: its first binding.
            prefetch: states that are delivered before :meth:`took` is called. 0: any number, and
                it need not be called.

        Raises:
            StatesNotTold: there is no exchange of states.
            AccessRefused: the user lacks a right.
            ChannelLost: the connection or the channel ended.
        """
        opened = cls(await connection.another_channel(), exchange, on_told, on_lost)
        try:
            with of_the_client(), opened._explained():
                await opened._consume(prefetch)
            await opened.bind(key)
        except BaseException:
            await opened.close()
            raise
        return opened

    async def _consume(self, prefetch: int) -> None:
        channel = await self._underlay()
        if prefetch:
            await channel.basic_qos(prefetch_count=prefetch)
        # It ends with its consumer. Otherwise it would fill if only the channel ended.
        declared = await channel.queue_declare(exclusive=True, auto_delete=True)
        self._name = declared.queue or ""
        channel.on_consumer_cancel_callbacks.add(self._on_cancelled)
        await channel.basic_consume(self._name, self._on_message, no_ack=not prefetch)

    @property
    def is_lost(self) -> bool:
        """Whether it has ended."""
        return self._channel.is_closed

    async def bind(self, key: str) -> None:
        """Have the states of a pattern delivered. Errors are those of :meth:`open`."""
        # A call that is cancelled would close the channel.
        await asyncio.shield(self._run(self._bind(key)))

    def unbind(self, key: str) -> None:
        """Undo a binding, without waiting for that."""
        if not self._channel.is_closed:
            self._run(self._unbind(key)).add_done_callback(forget_error)

    async def took(self, told: Told) -> None:
        """Acknowledge a state and all before it, so that more are delivered."""
        with lost_with(self._channel):
            await (await self._underlay()).basic_ack(told.tag, multiple=True, wait=False)

    async def close(self) -> None:
        """Give the queue up."""
        await close_quietly(self._channel)
        self._lose()

    async def _bind(self, key: str) -> None:
        with self._explained():
            await (await self._underlay()).queue_bind(self._name, self._exchange, key)

    async def _unbind(self, key: str) -> None:
        with self._explained():
            await (await self._underlay()).queue_unbind(self._name, self._exchange, key)

    async def _underlay(self) -> aiormq.abc.AbstractChannel:
        return await self._channel.get_underlay_channel()

    def _run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        with of_the_client():
            task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _on_message(self, message: DeliveredMessage) -> None:
        properties, key = message.header.properties, message.routing_key or ""
        words = key.split(".")
        if properties.message_type == STATE_MESSAGE and len(words) == 4:
            told = Told(
                properties.message_id or "", words[0], words[3], message.body, message.delivery_tag or 0
            )
            self._on_told(told)

    def _on_cancelled(self, _: object) -> None:
        """Give up a queue that was deleted. Its channel's reader calls this, and must go on."""
        self._run(self.close())

    def _lose(self) -> None:
        on_lost, self._on_lost = self._on_lost, _nothing
        on_lost()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with lost_with(self._channel):
                yield
        except ChannelLost as lost:
            if isinstance(lost.__cause__, ChannelNotFoundEntity):
                raise StatesNotTold(
                    f"No states are told here: there is no exchange '{self._exchange}'. "
                    "Workers declare it if WORKER_STATES is 'final' or 'all'."
                ) from lost
            if isinstance(lost.__cause__, ChannelAccessRefused):
                raise AccessRefused(f"The broker refuses to let this user follow states: {lost}.") from lost
            raise
        except ValueError as error:  # aiormq's, before anything is sent
            raise StatesNotTold(f"No exchange can have the name '{self._exchange}': {error}") from error


def forget_error(task: "asyncio.Task[Any]") -> None:
    """Take a task's error: asyncio warns of errors that are not taken."""
    if not task.cancelled():
        task.exception()


def _nothing() -> None:
    pass


def _forget_error(task: "asyncio.Task[None]") -> None:
    if not task.cancelled():
        task.exception()
