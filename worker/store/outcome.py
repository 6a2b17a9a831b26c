"""What became of a run that was to be created."""

from dataclasses import dataclass

from worker.contract.errors import Refusal
from worker.contract.flow_run import FlowRun


@dataclass(slots=True)
class Created:
    """The run is new."""

    run: FlowRun


@dataclass(slots=True)
class Existing:
    """A run of this key exists, and this is how it is now."""

    run: FlowRun


Outcome = Created | Existing | Refusal
