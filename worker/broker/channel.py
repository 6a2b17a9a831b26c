"""The hot path to RabbitMQ: deliveries in, publications out, acknowledgements, all in bulk; knows
nothing of their content.

aiormq makes a task of each delivery and a future of each publication. This channel is one of
aiormq's for all that is seldom, and goes past it with messages, confirms and acknowledgements:
straight from and to the socket, those of a whole batch at once. ``make bench`` shows what that is
worth.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

from aiormq.channel import Channel
from aiormq.exceptions import AMQPError

from worker.broker import frames
from worker.broker.confirmation import Confirmation, Confirmations
from worker.broker.delivery import Delivery, delivery_of
from worker.broker.publication import Publication
from worker.broker.transport import BulkConnection
from worker.mailbox import Mailbox

# A request that came back so often may be what ends the worker's process. It is served alone (see
# Session.consume), so that the others don't use up their delivery limit with it.
SUSPECT_DELIVERY_COUNT = 3
DEFAULT_FRAME_MAX = 131_072
# Confirms and returns come back by delivery tag and by message id; the id's tail is the tag.
_MESSAGE_ID_SEPARATOR = "."


class ChannelLost(ConnectionError):
    """The channel or its connection closed; what was in flight on it will be delivered again."""


class BulkChannel(Channel):
    """An AMQP channel that hands out deliveries in bulk, and publishes in bulk, with publisher
    confirms unless opened without.

    Use :meth:`publish` and :meth:`acknowledge`; ``basic_publish`` would upset the count of delivery
    tags, and of what ``basic_get`` asks for, the content would be taken for a delivery's. Its
    methods may be called from several tasks; what one call publishes stays together and in order.

    Attributes:
        deliveries: what came in and has not been taken yet, in the order of arrival.
        calm: set once a delivery came in that is no suspect.
    """

    def __init__(self, connection: BulkConnection, number: int, *, confirms: bool = True) -> None:
        super().__init__(connection, number, publisher_confirms=confirms)
        self.deliveries: Mailbox[Delivery] = Mailbox()
        self.calm = asyncio.Event()
        self._confirms = Confirmations()
        self._message_id_prefix = uuid4().hex
        self._takers = connection.transport.reader.takers
        self._writer = connection.transport.writer
        self._takers[number] = frames.ContentReader(self).take
        # Called however the channel ends; _on_close is skipped when the connection under it goes
        # first.
        self._closing.add_done_callback(self._ended)

    @classmethod
    async def open_on(cls, connection: BulkConnection, *, confirms: bool = True) -> "BulkChannel":
        """Open a channel.

        Args: confirms: whether the broker is to say what becomes of publications; without, nobody
            does.
        """
        number = max(connection.channels, default=0) + 1
        channel = cls(connection, number, confirms=confirms)
        connection.channels[number] = channel
        await channel.open()
        return channel

    @property
    def frame_max(self) -> int:
        """The largest frame that was agreed with the broker, in bytes; where it sets no limit (0),
        RabbitMQ's default.
        """
        return int(self.connection.connection_tune.frame_max) or DEFAULT_FRAME_MAX

    async def publish(self, publications: Sequence[Publication]) -> Confirmation:
        """Write publications to the wire, and return what will tell their fate.

        Raises:
            ChannelLost: the channel is gone.
        """
        payload: list[bytes] = []
        anonymous: set[int] = set()
        number, frame_max = self.number, self.frame_max
        for tag, publication in enumerate(publications, start=self._confirms.next_tag):
            if publication.numbered:
                publication.properties.message_id = f"{self._message_id_prefix}{_MESSAGE_ID_SEPARATOR}{tag}"
            else:
                anonymous.add(tag)
            payload.append(publication.marshal(number, frame_max))
        # Numbered and written without a wait between the two: so the frames go out in the order of
        # their tags.
        expected = len(publications) if self.publisher_confirms else 0
        confirmation = self._confirms.expect(expected, frozenset(anonymous))
        await self._write(payload)
        return confirmation

    async def acknowledge(self, tags: Iterable[int], *, up_to: int | None = None) -> None:
        """Acknowledge deliveries: all up to and with ``up_to``, and each of ``tags``. Calls are
        written in their order.

        Raises:
            ChannelLost: the channel is gone; they will be delivered again.
        """
        payload = [frames.acknowledge(self.number, tag, multiple=False) for tag in tags]
        if up_to is not None:
            payload.append(frames.acknowledge(self.number, up_to, multiple=True))
        await self._write(payload)

    def delivered(self, tag: int, *, redelivered: bool, properties: Any, body: bytes) -> None:
        """See :class:`worker.broker.frames.Incoming`."""
        delivery = delivery_of(tag, redelivered=redelivered, properties=properties, body=body)
        if delivery.delivery_count < SUSPECT_DELIVERY_COUNT:
            self.calm.set()
        self.deliveries.put(delivery)

    def returned(self, properties: Any) -> None:
        """See :class:`worker.broker.frames.Incoming`."""
        prefix, _, tag = (properties.message_id or "").rpartition(_MESSAGE_ID_SEPARATOR)
        if prefix == self._message_id_prefix and tag.isdecimal():
            self._confirms.returned(int(tag))
        else:
            self._confirms.returned_anonymously()

    def answered(self, tag: int, *, multiple: bool, refused: bool) -> None:
        """See :class:`worker.broker.frames.Incoming`."""
        self._confirms.answer(tag, multiple=multiple, refused=refused)

    async def _write(self, payload: list[bytes]) -> None:
        """Write whole frames; waits while the socket is full, so a blocked connection holds us
        back, not our memory.
        """
        if not payload:
            return
        if self.is_closed:
            raise ChannelLost("the channel is closed")
        try:
            self._writer.write(b"".join(payload))
            await self._writer.drain()
        # The second is how a socket says that it is closed already: it may be for some turns of the
        # loop before the channel is.
        except (OSError, RuntimeError) as error:
            raise ChannelLost(str(error) or "the connection to the broker is gone") from error

    def _ended(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        self._takers.pop(self.number, None)
        self._confirms.fail(ChannelLost(_describe(error)))
        self.deliveries.close()


def _describe(error: BaseException | None) -> str:
    if isinstance(error, AMQPError) and str(error):
        return str(error)
    return "the connection to the broker is gone"
