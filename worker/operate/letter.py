"""A dead letter: its id, and why it is there. Knows no queue."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from pydantic_core import from_json

from worker.contract.delivery import Delivery
from worker.contract.message import ERROR_HEADER, ERROR_STATUS_HEADER, FAILED_AT_HEADER
from worker.operate.causes import Cause, cause_of
from worker.operate.letter_reader import Taken

# Why the broker moved a message here, by the reason in its header (RabbitMQ's page on dead letter
# exchanges), and what to do.
MOVED = {
    "delivery_limit": (
        "it was delivered as often as the delivery limit allows, and never finished",
        "look at the workers' logs before you replay it: it kills their process, or it was in flight each "
        "time a worker was killed",
    ),
    "expired": (
        "it expired before a worker took it (a message TTL, or its expiration)",
        "replay it, if it is still of use; a TTL of the request queue usually comes from a policy: see "
        "'flow-run-worker doctor'",
    ),
    "maxlen": (
        "the request queue was full (max-length), and it was the oldest",
        "replay it; the length limit usually comes from a policy: see 'flow-run-worker doctor'",
    ),
    "rejected": (
        "a consumer rejected it",
        "replay it, and find the consumer: a worker leaves a message to the broker only if the broker closes "
        "the connection over the worker's copy; its log says so",
    ),
}


@dataclass(frozen=True, slots=True)
class Summary:
    """A dead letter without its content, for a list. It is small, so that there may be many.

    Attributes:
        cause: the id of its cause.
        key: the request's idempotency key.
        size: of its body, in bytes.
    """

    id: str
    failed_at: str | None
    status: int | None
    cause: str
    error: str
    key: str | None
    message_id: str | None
    size: int


@dataclass(frozen=True)
class Letter:
    """A dead letter with its content.

    Attributes:
        taken: the taken message, which acknowledges it.
        delivery: its content.
        id: twelve hexadecimal digits, from the message's fingerprint. Identical letters share it.
        status: the answered HTTP status. None if no worker wrote the letter.
        error: the reason in one line.
        failed_at: the time of the refusal, as the letter has it.
    """

    taken: Taken
    delivery: Delivery
    id: str
    status: int | None
    error: str
    failed_at: str | None

    @classmethod
    def of(cls, taken: Taken, delivery: Delivery) -> "Letter":
        """Read a taken message as a letter."""
        headers = delivery.message.headers
        status = headers.get(ERROR_STATUS_HEADER)
        error, failed_at = headers.get(ERROR_HEADER), headers.get(FAILED_AT_HEADER)
        if error is None:
            error, died_at = _why_moved(headers)
            failed_at = failed_at or died_at
        return cls(
            taken=taken,
            delivery=delivery,
            id=id_of(taken.identity),
            status=status if isinstance(status, int) else None,
            error=str(error),
            failed_at=None if failed_at is None else str(failed_at),
        )

    @property
    def cause(self) -> Cause:
        """The cause, which other letters may share."""
        return cause_of(self.status, self.error)

    @cached_property
    def failed(self) -> datetime | None:
        """The time of the refusal in UTC, if it can be read."""
        try:
            at = datetime.fromisoformat(self.failed_at or "")
            return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            return None

    @cached_property
    def body(self) -> Any:
        """The parsed body. None if it is no JSON."""
        try:
            return from_json(self.delivery.message.body)
        except ValueError:
            return None

    def text(self, name: str) -> str:
        """A field of the body. Empty if it is missing, or no text."""
        value = self.body.get(name) if isinstance(self.body, dict) else None
        return value if isinstance(value, str) else ""

    @property
    def key(self) -> str | None:
        """The request's idempotency key, if its body can be read."""
        return self.text("idempotency_key") or None

    def summary(self) -> Summary:
        """The letter without its content."""
        return Summary(
            self.id,
            self.failed_at,
            self.status,
            self.cause.id,
            self.error,
            self.key,
            self.delivery.message.message_id,
            self.delivery.size,
        )


def id_of(identity: UUID) -> str:
    """The id of a letter, by its message's fingerprint."""
    return identity.hex[:12]


def _why_moved(headers: Mapping[str, Any]) -> tuple[str, Any]:
    """The reason and the time of a letter that the broker moved here."""
    deaths = headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    reason = last.get("reason") or headers.get("x-first-death-reason")
    if reason is None:
        return "unknown: neither a worker nor the broker wrote a reason into it", None
    means, _ = MOVED.get(str(reason), ("unknown", ""))
    return f"moved by the broker: {reason}: {means}", last.get("time")
