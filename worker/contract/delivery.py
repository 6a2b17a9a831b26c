"""A delivery: one message as the broker handed it to us, with the tag that acknowledges it. Knows
nothing of its content.
"""

from dataclasses import replace

from .immutable import immutable
from .message import DELIVERY_COUNT_HEADER, Message


@immutable
class Delivery:
    """One delivery on one channel.

    Attributes:
        tag: the channel's delivery tag, in the order of arrival from 1.
        message: what was published.
        route: the exchange and the routing key that it was published to, each with its length
            before it (AMQP's short strings).
    """

    tag: int
    message: Message
    route: bytes = b"\0\0"

    @property
    def size(self) -> int:
        """Body size in bytes."""
        return len(self.message.body)

    @property
    def delivery_count(self) -> int:
        """How often the message was returned to this queue. Trust the header only in redelivered
        messages. In others a producer, a shovel or the management UI may have set it.
        """
        if not self.message.redelivered:
            return 0
        count = self.message.headers.get(DELIVERY_COUNT_HEADER, 0)
        return count if isinstance(count, int) else 0

    @property
    def redelivered(self) -> bool:
        """Whether the broker has delivered the message before."""
        return self.message.redelivered

    def without_reply(self) -> "Delivery":
        """The same without its ``reply_to``: no reply is sent. A dead letter still has it."""
        if self.message.reply_to is None:
            return self
        return Delivery(self.tag, replace(self.message, reply_to=None), self.route)

    def without_body(self) -> "Delivery":
        """The same without its body, to free the bytes."""
        return Delivery(self.tag, replace(self.message, body=b""), self.route)
