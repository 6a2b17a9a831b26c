"""What goes from stage to stage of the line."""

import asyncio
from dataclasses import dataclass
from uuid import UUID

from worker.contract.delivery import Delivery
from worker.contract.immutable import immutable
from worker.runs.creation import Requested
from worker.store import Decision


@immutable
class Request:
    """A delivery that was decoded.

    Attributes:
        size: what it takes in memory, estimated in bytes.
        tries: how often the database did not take it while it took others.
        written: how often the database was seen to write before the last of these tries.
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
    """What became of a delivery.

    Attributes:
        size: as of :class:`Request`.
        recorded: as of :class:`Answer`.
    """

    delivery: Delivery
    outcome: Decision
    size: int
    recorded: "asyncio.Future[None] | None" = None


@dataclass(slots=True)
class Answer:
    """What is to be said to one delivery: a flow run record, or why it is refused.

    Attributes:
        status: the HTTP status that Prefect answers.
        body: the JSON of the record or of the error; empty once a publication has it.
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
