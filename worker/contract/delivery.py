"""A delivery: one message as the broker handed it to us, with the tag that acknowledges it. Knows
nothing of its content.
"""

from dataclasses import replace

from worker.contract.immutable import immutable
from worker.contract.message import DELIVERY_COUNT_HEADER, Message


@immutable
class Delivery:
    """One delivery on one channel.

    Attributes:
        tag: the channel's delivery tag, in the order of arrival from 1.
        message: what was published.
    """

    tag: int
    message: Message

    @property
    def size(self) -> int:
        """Body size in bytes."""
        return len(self.message.body)

    @property
    def delivery_count(self) -> int:
        """How often it came back to this queue. Producers, shovels and the management UI can send
        the header that says so: it counts only in what the broker redelivers.
        """
        if not self.message.redelivered:
            return 0
        count = self.message.headers.get(DELIVERY_COUNT_HEADER, 0)
        return count if isinstance(count, int) else 0

    @property
    def redelivered(self) -> bool:
        """Whether it, or one like it, was delivered before."""
        return self.message.redelivered

    def without_body(self) -> "Delivery":
        """The same, for who needs the body no more; its bytes can go."""
        return Delivery(self.tag, replace(self.message, body=b""))
