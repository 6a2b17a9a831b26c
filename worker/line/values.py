"""What goes from stage to stage of the line."""

import asyncio

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


@immutable
class Done:
    """What became of a delivery.

    Attributes:
        size: as of :class:`Request`.
        recorded: as of :class:`worker.line.answer.Answer`.
    """

    delivery: Delivery
    outcome: Decision
    size: int
    recorded: "asyncio.Future[None] | None" = None
