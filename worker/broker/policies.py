"""Finds policies that break the contract of the worker's queues. Pure: the caller asks the broker.

A queue has one user policy, the one with the highest priority, and one operator policy. For each
setting the stricter of the two counts. Seen on RabbitMQ 3.10 and 4.0: a policy's ``overflow``
overrides the queue's argument, while the queue's ``x-dead-letter-…`` override the policy's.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from worker.contract.topology import NO_DELIVERY_LIMIT, QueueNames

# The name and priority of the policy that protects the worker's queues. Its priority is higher than
# usual ones: a guess.
POLICY = "flow-run-worker"
PRIORITY = 1000
# Each look at a dead letter in the management UI counts as a delivery. A delivery limit below this
# may be reached by looking; RabbitMQ 4's default is 20. A guess.
MANY_LOOKS = 1000


@dataclass(frozen=True, slots=True)
class Harm:
    """The harm that a policy does to a queue.

    Attributes:
        loses: messages are lost, or leave the queue too early. False: the queue only refuses some.
        text: a sentence without its full stop.
        remedy: advice to the operator.
    """

    loses: bool
    text: str
    remedy: str


def pattern(names: QueueNames) -> str:
    """A regular expression for the names of the worker's queues."""
    name = re.escape(names.queue).replace(r"\-", "-")  # as people write it
    return rf"^{name}(\.(dead|events|states\.cursor))?$"


def command(names: QueueNames, vhost: str) -> str:
    """The command that gives the worker's queues their own policy. It has the highest priority and,
    for RabbitMQ 4, no delivery limit.
    """
    definition = json.dumps({"delivery-limit": NO_DELIVERY_LIMIT})
    where = [] if vhost == "/" else ["--vhost", vhost]
    words = ["set_policy", *where, "--priority", str(PRIORITY), "--apply-to", "queues"]
    return shlex.join(["rabbitmqctl", *words, POLICY, pattern(names), definition])


def harms(names: QueueNames, vhost: str, queue: str, seen: Mapping[str, Any]) -> Iterator[Harm]:
    """Find the harms of a queue's policies.

    Args:
        seen: the queue as the management API shows it.
    """
    settings: Mapping[str, Any] = seen["effective_policy_definition"]
    named = f"'{seen.get('policy')}'" if seen.get("policy") else ""
    operators = seen.get("operator_policy")
    if operators:
        named = " and ".join(filter(None, (named, f"the operator policy '{operators}'")))
    remedy = f"Give the worker's queues a policy that goes before {named or 'all others'}: "
    remedy += command(names, vhost)
    if operators:
        remedy += f" Only the broker's operator can exclude these queues from the policy '{operators}'."
    for loses, text in _sentences(names, queue, settings, seen.get("delivery_limit")):
        by = f"the policy {named}" if seen.get("policy") else named
        yield Harm(loses, f"{by or 'RabbitMQ itself'} {text}", remedy)


def _sentences(
    names: QueueNames, queue: str, settings: Mapping[str, Any], default_limit: object
) -> Iterator[tuple[bool, str]]:
    requests, dead = queue == names.queue, queue == names.dead_letter_queue
    messages = "requests" if requests else "letters" if dead else "messages"
    if (expires := settings.get("expires")) is not None:
        yield True, f"deletes the queue and its messages after {expires:,} ms without use (expires)"
    if (ttl := settings.get("message-ttl")) is not None:
        becomes = f"moves {messages} to {names.dead_letter_queue}" if requests else f"drops {messages}"
        yield True, f"{becomes} after {ttl:,} ms (message-ttl)"
    overflow = settings.get("overflow", names.queues[queue].get("x-overflow", "drop-head"))
    drops = overflow != "reject-publish"
    for name in ("max-length", "max-length-bytes"):
        if (limit := settings.get(name)) is not None and drops:
            yield True, f"drops the oldest {messages} beyond {limit:,} ({name}, overflow {overflow})"
        elif limit is not None:
            yield False, f"takes no {messages} beyond {limit:,} ({name})"
    if "overflow" in settings and drops and "x-overflow" in names.queues[queue]:
        # At-least-once dead-lettering needs reject-publish.
        yield True, f"may lose what the queue dead-letters or drops (overflow {overflow})"
    limit = default_limit if isinstance(default_limit, int) else settings.get("delivery-limit")
    wanted = names.queues[queue].get("x-delivery-limit", MANY_LOOKS)
    if isinstance(limit, int) and 0 <= limit < wanted:
        looked = "looked at" if dead else "delivered"
        becomes = "gives up" if requests else "drops"
        yield not requests, f"{becomes} {messages} that were {looked} {limit} times (delivery-limit)"
