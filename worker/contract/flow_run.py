"""A flow run and its state as stored: the columns of Prefect's tables under their own names."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import NoneType
from typing import Any
from uuid import UUID


def since(prefect: str, default: Any) -> Any:
    """A column that an older Prefect's database lacks. There it is neither written nor read, and
    the row has the default.

    Args:
        prefect: the first version that has it, such as ``3.10``.
    """
    return field(default=default, metadata={"since": prefect})


@dataclass(slots=True)
class FlowRunState:
    """A row of ``flow_run_state``; ``state_details`` and ``data`` are JSON values."""

    id: UUID
    created: datetime
    updated: datetime
    flow_run_id: UUID
    type: str
    timestamp: datetime
    name: str
    message: str | None
    state_details: dict[str, Any]
    data: Any


@dataclass(slots=True)
class FlowRun:
    """A row of ``flow_run``, with its state and the columns of its work queue and work pool that a
    record shows.

    A field without a default is a column that every database has, one of :func:`since` a column
    that newer ones have. Datetimes are aware. ``parameters``, ``context``, ``empirical_policy``,
    ``tags``, ``labels``, ``created_by`` and ``job_variables`` are JSON values.
    """

    id: UUID
    created: datetime
    updated: datetime
    name: str
    flow_id: UUID
    state_id: UUID | None
    state_type: str | None
    state_name: str | None
    state_timestamp: datetime | None
    run_count: int
    expected_start_time: datetime | None
    next_scheduled_start_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    total_run_time: timedelta
    deployment_id: UUID | None
    deployment_version: str | None
    work_queue_id: UUID | None
    work_queue_name: str | None
    flow_version: str | None
    parameters: dict[str, Any]
    idempotency_key: str | None
    context: dict[str, Any]
    empirical_policy: dict[str, Any]
    tags: list[str]
    labels: dict[str, Any] | None
    created_by: dict[str, Any] | None
    infrastructure_pid: str | None
    infrastructure_document_id: UUID | None
    parent_task_run_id: UUID | None
    auto_scheduled: bool
    job_variables: dict[str, Any] | None
    state: FlowRunState | None = None
    work_pool_id: UUID | None = None
    work_pool_name: str | None = None
    pool_queue_name: str | None = None


# The JSON kinds that a run's columns must have to be shown.
_JSON_KINDS: dict[str, tuple[type, ...]] = {
    "parameters": (dict,),
    "context": (dict,),
    "empirical_policy": (dict,),
    "tags": (list,),
    "labels": (dict, NoneType),
    "created_by": (dict, NoneType),
    "job_variables": (dict, NoneType),
}


def odd_columns(run: FlowRun) -> list[str]:
    """The JSON columns of a stored run whose values are not of the kind that Prefect writes."""
    odd = [name for name, kinds in _JSON_KINDS.items() if not isinstance(getattr(run, name), kinds)]
    if "tags" not in odd and not all(isinstance(tag, str) for tag in run.tags):
        odd.append("tags")
    if run.state is not None and not isinstance(run.state.state_details, dict):
        odd.append("state_details")
    return odd
