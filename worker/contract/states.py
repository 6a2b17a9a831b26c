"""The message of a run's state: its type and routing key, and which states are published. The body
is a record, see :func:`worker.contract.record.encode_state`.
"""

from typing import Literal
from uuid import UUID

from .state import TERMINAL_TYPES

# The setting WORKER_STATES.
States = Literal["off", "final", "all"]
# The messages' AMQP property ``type``.
STATE_MESSAGE = "flow_run_state"
# A routing key's word for a run without a deployment.
NO_DEPLOYMENT = "-"


def routing_key(state_type: str, flow_id: UUID, deployment_id: UUID | None, run_id: UUID) -> str:
    """The routing key of a state's message. ``*.*.*.RUN_ID`` follows a run, ``FAILED.#`` all that
    fail.
    """
    return f"{state_type}.{flow_id}.{deployment_id or NO_DEPLOYMENT}.{run_id}"


def told_types(states: States) -> frozenset[str] | None:
    """The types of published states. None: all, also those that a newer Prefect has."""
    return TERMINAL_TYPES if states == "final" else None
