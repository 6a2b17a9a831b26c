"""Holds messages that the broker can't deliver: a connection that takes them and never reads them.
:mod:`worker.operate.letter_reader` says why.
"""

import asyncio
from contextlib import suppress

import aiormq
from aio_pika.abc import AbstractQueue
from aiormq.abc import ChannelFrame
from aiormq.exceptions import ChannelAccessRefused
from pamqp.commands import Basic

from worker.amqp.transport import Connection
from worker.broker.connection import close_quietly, connect

NAME = "flow-run-worker dead-letters"
# Bytes that fill the socket of the holding connection. By default Linux buffers at most 4 MiB.
_FILLING, _FILLING_PART = 16 * 1024 * 1024, 512 * 1024
# Wait this many seconds for the broker to run commands. It takes milliseconds.
_PATIENCE = 10.0
# Wait this many seconds if the user may declare no queue for answers.
_UNTOLD = 1.0


class ReadingFailed(Exception):
    """The queue can't be read any further. The message has the reason."""


class Holder:
    """A connection that takes undeliverable messages and never reads them."""

    def __init__(self, connection: Connection, channel: aiormq.Channel, name: str) -> None:
        self._connection = connection
        self._channel = channel
        self._name = name
        self._tag = 0
        # A message to this queue arrives after all commands written before it. None: the user may
        # not declare a queue.
        self._answers: AbstractQueue | None = None

    @classmethod
    async def open(cls, urls: str, name: str, watching: Connection) -> "Holder":
        connection = await connect(urls, name=f"{NAME} holding", connection_class=Connection)
        channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
        assert isinstance(channel, aiormq.Channel)  # always; the abstract class lacks "wait"
        holder = cls(connection, channel, name)
        with suppress(ChannelAccessRefused):
            answering = await watching.channel()
            answers = await answering.declare_queue(exclusive=True)
            await answers.get(fail=False, no_ack=True)  # the user may have no right to read it
            holder._answers = answers
        connection.frames.pause_reading()
        part = bytes(_FILLING_PART)
        for _ in range(_FILLING // _FILLING_PART):
            # It is returned, as no queue has this name.
            await channel.basic_publish(part, routing_key=f"{name} nowhere", mandatory=True, wait=False)
        return holder

    async def take(self) -> int:
        """Take the next message. Returns its delivery tag, which the broker counts by channel."""
        get = Basic.Get(queue=self._name, no_ack=False)
        frame = ChannelFrame.marshall(channel_number=self._channel.number, frames=[get])
        await self._channel.write_queue.put(frame)  # as the fast path does
        await self._until_done()
        self._tag += 1
        return self._tag

    async def acknowledge(self, tag: int) -> None:
        """Remove a held message from the queue."""
        await self._channel.basic_ack(tag)
        await self._until_done()

    async def close(self) -> None:
        """Close without a handshake: the broker's answer would not be read."""
        self._connection.frames.abort()
        await close_quietly(self._connection)

    async def _until_done(self) -> None:
        """Wait until the broker has run all commands written so far."""
        if self._answers is None:
            await asyncio.sleep(_UNTOLD)
            return
        await self._channel.basic_publish(b"", routing_key=self._answers.name, wait=False)
        try:
            async with asyncio.timeout(_PATIENCE):
                while await self._answers.get(fail=False, no_ack=True) is None:
                    await asyncio.sleep(0.005)
        except TimeoutError as error:
            raise ReadingFailed(
                "A dead letter that the broker can't deliver can't be held back: the broker takes nothing "
                "from this connection (is there an alarm?)"
            ) from error
