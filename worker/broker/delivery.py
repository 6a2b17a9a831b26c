"""A delivery: one message as the broker handed it to us, with the tag that acknowledges it. Knows
nothing of its content.
"""

from dataclasses import dataclass
from typing import Any

from pamqp import commands as spec

from worker.broker.properties import UndecodableProperties
from worker.contract.message import Message

# Set by quorum queues from the second delivery on.
DELIVERY_COUNT_HEADER = "x-delivery-count"


@dataclass(frozen=True, slots=True)
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
        """How often it was delivered before and came back."""
        count = self.message.headers.get(DELIVERY_COUNT_HEADER, 0)
        return count if isinstance(count, int) else 0

    @property
    def redelivered(self) -> bool:
        """Whether it, or one like it, was delivered before."""
        return self.message.redelivered


def delivery_of(tag: int, *, redelivered: bool, properties: spec.Basic.Properties, body: bytes) -> Delivery:
    """Put together what came in as a method, a header and its body frames."""
    headers: Any = properties.headers
    undecodable = properties if isinstance(properties, UndecodableProperties) else None
    return Delivery(
        tag=tag,
        message=Message(
            body=body,
            headers=headers or {},
            content_type=properties.content_type,
            content_encoding=properties.content_encoding,
            reply_to=properties.reply_to,
            correlation_id=properties.correlation_id,
            message_id=properties.message_id,
            type=properties.message_type,
            user_id=properties.user_id,
            app_id=properties.app_id,
            expiration=properties.expiration,
            delivery_mode=properties.delivery_mode,
            priority=properties.priority,
            timestamp=properties.timestamp,
            redelivered=redelivered,
            undecodable=undecodable.reason if undecodable else None,
            raw_properties=undecodable.raw if undecodable else None,
        ),
    )
