"""Remembers messages whose answers were unconfirmed when the broker ended a session: one of them
may be the cause. Knows no broker.
"""

from collections.abc import Iterable
from time import monotonic

from worker.contract.message import Message

# Seconds. Messages in flight come back at once. If another worker holds one, the consumer timeout
# (30 minutes by default) ends that.
SUSPECT_SECONDS = 3600.0
# More than are ever unconfirmed at once. The oldest are forgotten.
MAX_SUSPECTS = 10_000


class Suspects:
    """The messages whose answers are published one at a time. Kept from session to session."""

    def __init__(self) -> None:
        self._until: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, message: Message) -> bool:
        key = _key(message)
        until = self._until.get(key)
        if until is not None and until < monotonic():
            del self._until[key]
            until = None
        return until is not None

    def add(self, messages: Iterable[Message]) -> None:
        """Suspect these messages."""
        until = monotonic() + SUSPECT_SECONDS
        for message in messages:
            self._until.pop(key := _key(message), None)
            self._until[key] = until
        for oldest in list(self._until)[: max(0, len(self._until) - MAX_SUSPECTS)]:
            del self._until[oldest]

    def discard(self, message: Message) -> None:
        """Clear this message: the broker took its answer."""
        self._until.pop(_key(message), None)


def _key(message: Message) -> int:
    """A quick key, equal for all deliveries of a message. Two messages may share one: then both
    answers are published alone, which does no harm.
    """
    return hash((message.message_id, message.correlation_id, message.reply_to, message.body))
