"""The values that stages of the line hand on."""

import asyncio
from uuid import UUID

from worker.contract.delivery import Delivery
from worker.contract.immutable import immutable
from worker.runs.creation import Requested
from worker.store import Decision


@immutable
class Request:
    """A delivery that was decoded.

    Attributes:
        size: estimated memory, in bytes.
        tries: how often the database failed over this request alone.
        written: how often the database had been seen to write before the last of these tries.
    """

    delivery: Delivery
    new: Requested
    size: int
    tries: int = 0
    written: int = 0


# A request, and what became of it.
Decided = tuple[Request, Decision]


@immutable
class Done:
    """A delivery that is decided.

    Attributes:
        size: as of :class:`Request`.
        recorded: as of :class:`Answer`.
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
        refused: why the request is refused, in a line; its whole message then goes to the dead
            letters as well. None where it is not.
        replied: whether a reply may be sent to where the request wants it.
        recorded: done once the run's event is in the outbox; None where there is none to wait for.
    """

    delivery: Delivery
    status: int
    body: bytes
    run_id: UUID | None = None
    refused: str | None = None
    replied: bool = True
    recorded: "asyncio.Future[None] | None" = None

    @property
    def reply_to(self) -> str | None:
        """Where the reply goes; None where none is wanted, or none may be sent."""
        return self.delivery.message.reply_to or None if self.replied else None
