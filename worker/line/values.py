"""The values that a stage of the line passes to the next one."""

import asyncio
from uuid import UUID

from worker.contract.delivery import Delivery
from worker.contract.immutable import immutable
from worker.runs.creation import Requested
from worker.store import Decision


@immutable
class Request:
    """A decoded delivery.

    Attributes:
        size: estimated memory, in bytes.
        tries: the number of failures of the database over this request alone.
        written: how often the database was seen to write, before the last of these tries.
    """

    delivery: Delivery
    new: Requested
    size: int
    tries: int = 0
    written: int = 0


# A request with its outcome.
Decided = tuple[Request, Decision]


@immutable
class Done:
    """A decided delivery.

    Attributes:
        size: as in :class:`Request`.
        recorded: as in :class:`Answer`.
    """

    delivery: Delivery
    outcome: Decision
    size: int
    recorded: "asyncio.Future[None] | None" = None


@immutable
class Answer:
    """The answer to one delivery: a flow run record, or an error.

    Attributes:
        status: the HTTP status that Prefect answers.
        body: the JSON of the record or of the error.
        run_id: the run that the record shows; None for a refusal.
        refused: the reason for a refusal, in one line. The whole message then also becomes a dead
            letter, unless it reads. None if the request is not refused.
        replied: a reply may be published to the request's reply queue.
        read: the request reads a run. If it is refused, there is no dead letter.
        recorded: done once the run's event is in the outbox; None if there is no event.
    """

    delivery: Delivery
    status: int
    body: bytes
    run_id: UUID | None = None
    refused: str | None = None
    replied: bool = True
    read: bool = False
    recorded: "asyncio.Future[None] | None" = None

    @property
    def reply_to(self) -> str | None:
        """The reply's queue; None if the request names none, or no reply may be published."""
        return self.delivery.message.reply_to or None if self.replied else None
