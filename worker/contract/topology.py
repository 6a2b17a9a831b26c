"""The queues, the exchanges and the binding of the wire contract, all named after one queue."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# Names of queues and exchanges that the client library accepts (pamqp's ``DOMAIN_REGEX`` and
# ``Queue.Bind.validate``), and AMQP's limit for a routing key in bytes.
NAME = re.compile(r"[a-zA-Z0-9-_.:@#,/+ ]*")
MAX_EXCHANGE = 127
MAX_ROUTING_KEY = 255
EVENTS_SUFFIX = ".events"
STATES_SUFFIX = ".states"
# RabbitMQ 4's default limit is 20, and -1 means no limit. RabbitMQ 3.10 takes -1 as a limit that
# the first return exceeds, and drops the message. So set a number that no message reaches.
NO_DELIVERY_LIMIT = 2**31 - 1
# One consumer at a time, and a message may wait without limit: an event for Prefect's API, a cursor
# for its successor.
_ONE_CONSUMER: dict[str, Any] = {
    "x-queue-type": "quorum",
    "x-delivery-limit": NO_DELIVERY_LIMIT,
    "x-single-active-consumer": True,
    "x-overflow": "reject-publish",
}


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding of the request queue to an exchange that others own.

    Attributes:
        exchange: the exchange's name.
        routing_key: may be empty, and for a topic exchange a pattern.
    """

    exchange: str
    routing_key: str

    def __str__(self) -> str:
        return f"{self.exchange}:{self.routing_key}"


def read_bindings(text: str) -> tuple[Binding, ...]:
    """Bindings from ``EXCHANGE:ROUTING KEY``, separated by commas. An exchange's name may have
    colons, a routing key may not.

    Raises:
        ValueError: the text is wrong.
    """
    bindings: list[Binding] = []
    for each in filter(None, (each.strip() for each in text.split(","))):
        exchange, colon, routing_key = each.rpartition(":")
        if not colon or not exchange:
            raise ValueError(f"'{each}' must be EXCHANGE:ROUTING KEY; the key may be empty, not the exchange")
        if not NAME.fullmatch(exchange) or len(exchange) > MAX_EXCHANGE:
            raise ValueError(f"'{exchange}' is no name of an exchange")
        if len(routing_key.encode()) > MAX_ROUTING_KEY or not routing_key.isprintable():
            raise ValueError(f"'{routing_key}' is no routing key")
        bindings.append(Binding(exchange, routing_key))
    return tuple(dict.fromkeys(bindings))


@dataclass(frozen=True)
class QueueNames:
    """The names and the arguments of the queues, the exchanges and the binding.

    Attributes:
        queue: the request queue. All other names follow from it.
        events: whether there is an outbox for events as well.
        states: whether the states of runs are published as well.
        bindings: of the request queue to exchanges of others.
    """

    queue: str
    events: bool = False
    states: bool = False
    bindings: tuple[Binding, ...] = ()

    @cached_property
    def dead_letter_queue(self) -> str:
        """The queue of refused requests."""
        return self.queue + ".dead"

    @cached_property
    def events_queue(self) -> str:
        """The name of the outbox, even if there is none."""
        return self.queue + EVENTS_SUFFIX

    @cached_property
    def states_exchange(self) -> str:
        """The name of the topic exchange of states, even if there is none."""
        return self.queue + STATES_SUFFIX

    @cached_property
    def cursor_queue(self) -> str:
        """The name of the queue of the states' cursor, even if there is none."""
        return self.states_exchange + ".cursor"

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
            queues[self.events_queue] = dict(_ONE_CONSUMER)
        if self.states:
            queues[self.cursor_queue] = dict(_ONE_CONSUMER)
        return queues

    @property
    def exchanges(self) -> dict[str, str]:
        """The type of each exchange by its name; all are durable."""
        exchanges: dict[str, str] = {}
        if self.exchange is not None:
            exchanges[self.exchange] = "direct"
        if self.states:
            exchanges[self.states_exchange] = "topic"
        return exchanges
