"""The outcomes of a request at the store, as values."""

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
    """A run with this key exists. ``run`` is its present state."""

    run: FlowRun


@immutable
class Read:
    """The run that a request reads."""

    run: FlowRun


@immutable
class Undecided:
    """The request is undecided, and must be given again.

    Attributes:
        reason: why, in one line.
        ready: done once it is time to give it again; None for a pause.
        refusal: the answer if this goes on; None if nothing says that the request is to blame.
        blamed: the database has written another run meanwhile, but not this one.
        tries: tries of a blamed run before it is refused.
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
        """True if the database may be to blame, and no run is."""
        return self.ready is None and not self.blamed


Decision = Created | Existing | Read | Refusal
Outcome = Decision | Undecided
