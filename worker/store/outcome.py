"""What became of a run that was to be created."""

from dataclasses import dataclass

from worker.contract.errors import IntegrityConflict, Refusal, Unprocessable
from worker.contract.flow_run import FlowRun


@dataclass(frozen=True, slots=True)
class Created:
    """The run is new."""

    run: FlowRun


@dataclass(frozen=True, slots=True)
class Existing:
    """A run of this key exists, and this is how it is now."""

    run: FlowRun


Outcome = Created | Existing | Refusal


def refused_by_database(error: Exception, conflict: type[Exception]) -> Refusal:
    """The refusal for a row that the database does not take.

    Args:
        conflict: what the driver raises where a row that is referred to is missing.
    """
    if isinstance(error, conflict):
        return IntegrityConflict(str(error))
    return Unprocessable(f"The database cannot store this run: {error}")
