"""Remembers messages whose answers the broker had not confirmed when it ended a session: one of
those answers may be why. Knows no broker.
"""

from collections.abc import Iterable
from time import monotonic

from worker.contract.message import Message

# What was in flight comes back at once; a delivery that is held for longer than this many seconds
# is ended by the consumer timeout anyhow (30 minutes by default).
SUSPECT_SECONDS = 3600.0
# More than were ever unconfirmed at once; the oldest are forgotten.
MAX_SUSPECTS = 10_000


class Suspects:
    """The messages whose answers go out alone. They outlive a session, not the process."""

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
        """Suspect these."""
        until = monotonic() + SUSPECT_SECONDS
        for message in messages:
            self._until.pop(key := _key(message), None)
            self._until[key] = until
        for oldest in list(self._until)[: max(0, len(self._until) - MAX_SUSPECTS)]:
            del self._until[oldest]

    def discard(self, message: Message) -> None:
        """Suspect this one no more: the broker took its answer."""
        self._until.pop(_key(message), None)


def _key(message: Message) -> int:
    """The same for each delivery of a message; quickly made. Two messages that share it do each
    other no harm: their answers go out alone.
    """
    return hash((message.message_id, message.correlation_id, message.reply_to, message.body))
