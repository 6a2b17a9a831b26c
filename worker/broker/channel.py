"""The hot path to RabbitMQ: deliveries in, publications out, acknowledgements, all in bulk; knows nothing of their content.

aiormq makes a task of each delivery and a future of each publication. Its own frame reader and writer cost little, so
this channel takes its place at that seam: it overrides what a channel does with a delivery, a confirm and a return, and
writes the frames of a whole batch at once. ``make bench`` shows what that is worth.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

import pamqp.frame
from aiormq.abc import AbstractConnection, ChannelFrame, ConfirmationFrameType
from aiormq.channel import Channel
from aiormq.exceptions import AMQPError
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from worker.broker import undecodable
from worker.broker.confirmation import Confirmation, Confirmations
from worker.broker.delivery import Delivery, delivery_from_frames
from worker.broker.publication import Publication
from worker.mailbox import Mailbox

# A request that came back so often may be what ends the worker's process. It is served alone (see Session.consume), so
# that the others don't use up their delivery limit with it.
SUSPECT_DELIVERY_COUNT = 3
DEFAULT_FRAME_MAX = 131_072
# Confirms and returns come back by delivery tag and by message id; the id's tail is the tag.
_MESSAGE_ID_SEPARATOR = "."


class ChannelLost(ConnectionError):
    """The channel or its connection closed; what was in flight on it will be delivered again."""


class BulkChannel(Channel):
    """An AMQP channel that hands out deliveries in bulk and publishes in bulk with publisher confirms.

    Use :meth:`publish` and :meth:`acknowledge` only; ``basic_publish`` would upset the count of delivery tags.
    Its methods may be called from several tasks; what one call publishes stays together and in order.

    Attributes:
        deliveries: what came in and has not been taken yet, in the order of arrival.
        calm: set once a delivery came in that is no suspect.
    """

    def __init__(self, connection: AbstractConnection, number: int) -> None:
        super().__init__(connection, number, publisher_confirms=True)
        undecodable.install()
        self.deliveries: Mailbox[Delivery] = Mailbox()
        self.calm = asyncio.Event()
        self._confirms = Confirmations()
        # Frames go out in the order of their tags. The connection's own queue of frames does not keep it among tasks once it is
        # full: one that comes just as there is room again goes before those that wait. A lock lets nobody pass.
        self._writing = asyncio.Lock()
        self._message_id_prefix = uuid4().hex
        # Called however the channel ends; _on_close is skipped when the connection under it goes first.
        self._closing.add_done_callback(self._ended)

    @classmethod
    async def open_on(cls, connection: AbstractConnection) -> "BulkChannel":
        """Open a channel with confirms on."""
        number = max(connection.channels, default=0) + 1
        channel = cls(connection, number)
        connection.channels[number] = channel
        await channel.open()
        return channel

    @property
    def frame_max(self) -> int:
        """The largest frame that was agreed with the broker, in bytes; where it sets no limit (0), RabbitMQ's default."""
        return int(self.connection.connection_tune.frame_max) or DEFAULT_FRAME_MAX

    async def publish(self, publications: Sequence[Publication]) -> Confirmation:
        """Write publications to the wire, and return what will tell their fate.

        Raises:
            ChannelLost: the channel is gone.
        """
        async with self._writing:
            frames: list[bytes] = []
            anonymous: set[int] = set()
            for tag, publication in enumerate(publications, start=self._confirms.next_tag):
                if publication.numbered:
                    publication.properties.message_id = f"{self._message_id_prefix}{_MESSAGE_ID_SEPARATOR}{tag}"
                else:
                    anonymous.add(tag)
                frames.append(publication.marshal(self.number, self.frame_max))
            confirmation = self._confirms.expect(len(publications), frozenset(anonymous))
            if frames:
                await self._write(b"".join(frames))
        return confirmation

    async def acknowledge(self, tags: Iterable[int], *, up_to: int | None = None) -> None:
        """Acknowledge deliveries: all up to and with ``up_to``, and each of ``tags``. Calls are written in their order.

        Raises:
            ChannelLost: the channel is gone; they will be delivered again.
        """
        frames = [pamqp.frame.marshal(spec.Basic.Ack(tag, False), self.number) for tag in tags]
        if up_to is not None:
            frames.append(pamqp.frame.marshal(spec.Basic.Ack(up_to, True), self.number))
        if frames:
            async with self._writing:
                await self._write(b"".join(frames))

    async def _write(self, payload: bytes) -> None:
        if self.is_closed:
            raise ChannelLost("the channel is closed")
        # With a future to drain the writer waits for the socket, so a blocked connection holds us back, not our memory.
        drained = self.create_future()
        await self.write_queue.put(ChannelFrame(payload=payload, should_close=False, drain_future=drained))

    async def _on_deliver_frame(self, frame: spec.Basic.Deliver) -> None:
        header, body = await self._content()
        delivery = delivery_from_frames(frame, header.properties, body)
        if delivery.delivery_count < SUSPECT_DELIVERY_COUNT:
            self.calm.set()
        self.deliveries.put(delivery)

    async def _on_return_frame(self, frame: spec.Basic.Return) -> None:
        header, _ = await self._content()
        prefix, _, tag = (header.properties.message_id or "").rpartition(_MESSAGE_ID_SEPARATOR)
        if prefix == self._message_id_prefix and tag.isdecimal():
            self._confirms.returned(int(tag))
        else:
            self._confirms.returned_anonymously()

    async def _on_confirm_frame(self, frame: ConfirmationFrameType) -> None:
        self._confirms.answer(
            frame.delivery_tag or 0,
            multiple=bool(getattr(frame, "multiple", False)),
            refused=isinstance(frame, spec.Basic.Nack),
        )

    def _ended(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        self._confirms.fail(ChannelLost(_describe(error)))
        self.deliveries.close()

    async def _content(self) -> tuple[ContentHeader, bytes]:
        header = await self._get_frame()
        if not isinstance(header, ContentHeader):
            raise TypeError(f"a content header was due, not {header!r}")
        parts: list[bytes] = []
        missing = header.body_size
        while missing > 0:
            frame = await self._get_frame()
            if not isinstance(frame, ContentBody):
                raise TypeError(f"a content body was due, not {frame!r}")
            parts.append(frame.value)
            missing -= len(frame.value)
        return header, parts[0] if len(parts) == 1 else b"".join(parts)


def _describe(error: BaseException | None) -> str:
    if isinstance(error, AMQPError) and str(error):
        return str(error)
    return "the connection to the broker is gone"
