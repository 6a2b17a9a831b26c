"""What is to be said to a delivery: made by the line, settled at its end; publishes nothing."""

import asyncio
from dataclasses import dataclass
from uuid import UUID

from worker.contract.delivery import Delivery


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
