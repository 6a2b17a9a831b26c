"""A dead letter: its id, and why it is there. Knows no queue."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from worker.contract.delivery import Delivery
from worker.contract.message import ERROR_HEADER, ERROR_STATUS_HEADER, FAILED_AT_HEADER, fingerprint
from worker.operate.letter_reader import Taken

# Why the broker moved a message here, by the reason in its header (RabbitMQ's page on dead letter
# exchanges).
_REASONS = {
    "delivery_limit": "it was delivered as often as the delivery limit allows, and never finished",
    "expired": "it expired before a worker took it (a message TTL, or its expiration)",
    "maxlen": "the request queue was full (max-length), and it was the oldest",
    "rejected": "a consumer rejected it",
}


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter.

    Attributes:
        taken: the taken message, which acknowledges it.
        id: twelve hexadecimal digits, from the message's fingerprint. Identical letters share it.
        status: the answered HTTP status. None if no worker wrote the letter.
        error: the reason in one line.
        failed_at: the time of the refusal, as the letter has it.
    """

    taken: Taken
    id: str
    status: int | None
    error: str
    failed_at: str | None

    @classmethod
    def of(cls, taken: Taken) -> "Letter":
        """Read a taken message as a letter."""
        headers = taken.delivery.message.headers
        status = headers.get(ERROR_STATUS_HEADER)
        error, failed_at = headers.get(ERROR_HEADER), headers.get(FAILED_AT_HEADER)
        if error is None:
            error, died_at = _why_moved(headers)
            failed_at = failed_at or died_at
        return cls(
            taken=taken,
            id=fingerprint(taken.delivery.message).hex[:12],
            status=status if isinstance(status, int) else None,
            error=str(error),
            failed_at=None if failed_at is None else str(failed_at),
        )

    @property
    def delivery(self) -> Delivery:
        """The letter's delivery."""
        return self.taken.delivery

    @property
    def key(self) -> str | None:
        """The request's idempotency key, if its body can be read."""
        try:
            body = from_json(self.delivery.message.body)
        except ValueError:
            return None
        key = body.get("idempotency_key") if isinstance(body, dict) else None
        return key if isinstance(key, str) else None

    def matches(self, ids: Iterable[str], status: int | None, error: str | None) -> bool:
        """Whether the id begins with one of these, and status and error text match. An argument
        that is empty or None matches all.
        """
        wanted = tuple(ids)
        return (
            (not wanted or self.id.startswith(wanted))
            and (status is None or self.status == status)
            and (error is None or error.lower() in self.error.lower())
        )


def _why_moved(headers: Mapping[str, Any]) -> tuple[str, Any]:
    """The reason and the time of a letter that the broker moved here."""
    deaths = headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    reason = last.get("reason") or headers.get("x-first-death-reason")
    if reason is None:
        return "unknown: neither a worker nor the broker wrote a reason into it", None
    return f"moved by the broker: {reason}: {_REASONS.get(str(reason), 'unknown')}", last.get("time")
