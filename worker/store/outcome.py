"""What became of a run that was to be created."""

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


Outcome = Created | Existing | Refusal
