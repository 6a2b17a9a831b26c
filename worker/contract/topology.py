"""The queues, the exchange and the binding of the wire contract, all named after one queue."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

EVENTS_SUFFIX = ".events"
# RabbitMQ 4's default limit is 20, and -1 means no limit. RabbitMQ 3.10 takes -1 as a limit that
# the first return exceeds, and drops the message. So set a number that no message reaches.
NO_DELIVERY_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class QueueNames:
    """The names and the arguments of the queues, the exchange and the binding.

    Attributes:
        queue: the request queue. All other names follow from it.
        events: whether there is an outbox for events as well.
    """

    queue: str
    events: bool = False

    @cached_property
    def dead_letter_queue(self) -> str:
        """The queue of refused requests."""
        return self.queue + ".dead"

    @cached_property
    def events_queue(self) -> str:
        """The name of the outbox, even if there is none."""
        return self.queue + EVENTS_SUFFIX

    @property
    def exchange(self) -> str | None:
        """The direct exchange for producers, ``flow-runs`` for ``flow-runs.create``; None if the
        queue's name has no dot.
        """
        exchange, _, routing_key = self.queue.rpartition(".")
        return exchange if exchange and routing_key else None

    @property
    def routing_key(self) -> str | None:
        """The routing key from :attr:`exchange` to the queue: ``create``."""
        return self.queue.rpartition(".")[2] if self.exchange else None

    @property
    def queues(self) -> dict[str, dict[str, Any]]:
        """The arguments of each queue by its name; all are durable quorum queues."""
        queues: dict[str, dict[str, Any]] = {
            # Nothing is dropped on overflow, and a poisonous request becomes a dead letter.
            self.queue: {
                "x-queue-type": "quorum",
                "x-delivery-limit": 20,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": self.dead_letter_queue,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
            self.dead_letter_queue: {"x-queue-type": "quorum"},
        }
        if self.events:
            # One consumer at a time, and an event may wait for Prefect's API without limit.
            queues[self.events_queue] = {
                "x-queue-type": "quorum",
                "x-delivery-limit": NO_DELIVERY_LIMIT,
                "x-single-active-consumer": True,
                "x-overflow": "reject-publish",
            }
        return queues
