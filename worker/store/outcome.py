"""What becomes of a request at the store, as values."""

import asyncio

from worker.contract.errors import Refusal
from worker.contract.flow_run import FlowRun
from worker.contract.immutable import immutable


@immutable
class Created:
    """The run is new."""

    run: FlowRun


@immutable
class Existing:
    """A run of this key exists, and this is how it is now."""

    run: FlowRun


@immutable
class Undecided:
    """Nothing is known of this run yet: the same request is to be given again.

    Attributes:
        reason: why, in one line.
        ready: done once it is worth giving again; None for a pause.
        refusal: what the request is answered if this goes on; None if nothing says that it is the
            request's own matter.
        blamed: whether the database has written another run meanwhile, and not this one.
        tries: how often a blamed run is tried before it is refused.
        ended: as of :class:`worker.contract.errors.Fault`.
    """

    reason: str
    ready: "asyncio.Future[None] | None" = None
    refusal: Refusal | None = None
    blamed: bool = False
    tries: int = 3
    ended: bool = False

    @property
    def is_fault(self) -> bool:
        """Whether the database may be to blame, and no run is."""
        return self.ready is None and not self.blamed


Decision = Created | Existing | Refusal
Outcome = Decision | Undecided
