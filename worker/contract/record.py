"""The flow run record, Prefect's ``FlowRunResponse``: a model that reads it, and a function that
writes it from a row directly, for speed.
"""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from .encoding import dumps
from .flow_run import FlowRun, FlowRunState
from .policy import CreatedBy, FlowRunPolicy
from .state import TERMINAL_TYPES, StateDetails, StateType

_RUNNING = StateType.RUNNING.value
_ZERO = timedelta(0)


class State(BaseModel):
    """A run's state in a record."""

    id: UUID
    type: StateType
    name: str | None = None
    timestamp: datetime
    message: str | None = None
    data: Any | None = None
    state_details: StateDetails


class FlowRunRecord(BaseModel):
    """A flow run as replies show it. Durations are in seconds, datetimes in UTC."""

    model_config = ConfigDict(ser_json_timedelta="float", extra="ignore")

    id: UUID
    created: datetime | None = None
    updated: datetime | None = None
    name: str = Field(description="The run's name.")
    flow_id: UUID = Field(description="The flow that is to be run.")
    state_id: UUID | None = Field(default=None, description="The current state's id.")
    deployment_id: UUID | None = Field(default=None, description="The deployment that the run belongs to.")
    deployment_version: str | None = Field(default=None, description="The deployment's version.")
    work_queue_id: UUID | None = Field(default=None, description="The work queue's id.")
    work_queue_name: str | None = Field(default=None, description="The work queue's name.")
    flow_version: str | None = Field(default=None, description="The flow's version.")
    parameters: dict[str, Any] = Field(default_factory=dict, description="The flow's parameters.")
    idempotency_key: str | None = Field(
        default=None, description="The key under which the run was created once."
    )
    context: dict[str, Any] = Field(default_factory=dict, description="More about the run.")
    empirical_policy: FlowRunPolicy = Field(default_factory=FlowRunPolicy, description="How the run retries.")
    tags: list[str] = Field(default_factory=list, description="Tags.")
    labels: dict[str, bool | int | float | str] = Field(default_factory=dict, description="Labels.")
    parent_task_run_id: UUID | None = Field(
        default=None, description="For a subflow: the task run that stands for it."
    )
    state_type: StateType | None = Field(default=None, description="The current state's type.")
    state_name: str | None = Field(default=None, description="The current state's name.")
    run_count: int = Field(default=0, description="How often the run was started.")
    expected_start_time: datetime | None = Field(
        default=None, description="When the run was or is expected to start."
    )
    next_scheduled_start_time: datetime | None = Field(
        default=None, description="When a SCHEDULED run is to start."
    )
    start_time: datetime | None = Field(default=None, description="When the run first started.")
    end_time: datetime | None = Field(default=None, description="When the run ended.")
    total_run_time: timedelta = Field(default=_ZERO, description="Time spent RUNNING, in seconds.")
    estimated_run_time: timedelta = Field(
        default=_ZERO, description="The same with the time since, while RUNNING."
    )
    estimated_start_time_delta: timedelta = Field(
        default=_ZERO, description="How late the run started or is, in seconds."
    )
    auto_scheduled: bool = Field(default=False, description="Whether a schedule made the run.")
    infrastructure_document_id: UUID | None = Field(
        default=None, description="The block document of its infrastructure."
    )
    infrastructure_pid: str | None = Field(
        default=None, description="The infrastructure's own id of the run."
    )
    created_by: CreatedBy | None = Field(default=None, description="Who made the run.")
    work_pool_id: UUID | None = Field(default=None, description="The work pool's id.")
    work_pool_name: str | None = Field(default=None, description="The work pool's name.")
    state: State | None = Field(default=None, description="The current state.")
    job_variables: dict[str, Any] | None = Field(
        default=None, description="Overrides for the infrastructure's template."
    )


def encode_record(run: FlowRun, now: datetime) -> bytes:
    """A run as the JSON of its record, in the order of ``FlowRunRecord``'s fields.

    Args:
        now: the time at which running times and lateness are estimated.
    """
    return dumps(_record(run, now))


def encode_state(run: FlowRun, state: FlowRunState, now: datetime) -> bytes:
    """The record of a run as it is now, but with one of its states in place of the current one."""
    told = {"state_id": state.id, "state_type": state.type, "state_name": state.name, "state": _state(state)}
    return dumps(_record(run, now) | told)


def _record(run: FlowRun, now: datetime) -> dict[str, Any]:
    return {
        "id": run.id,
        "created": run.created,
        "updated": run.updated,
        "name": run.name,
        "flow_id": run.flow_id,
        "state_id": run.state_id,
        "deployment_id": run.deployment_id,
        "deployment_version": run.deployment_version,
        "work_queue_id": run.work_queue_id,
        "work_queue_name": run.pool_queue_name or run.work_queue_name,
        "flow_version": run.flow_version,
        "parameters": run.parameters,
        "idempotency_key": run.idempotency_key,
        "context": run.context,
        "empirical_policy": run.empirical_policy,
        "tags": run.tags,
        "labels": run.labels or {},
        "parent_task_run_id": run.parent_task_run_id,
        "state_type": run.state_type,
        "state_name": run.state_name,
        "run_count": run.run_count,
        "expected_start_time": run.expected_start_time,
        "next_scheduled_start_time": run.next_scheduled_start_time,
        "start_time": run.start_time,
        "end_time": run.end_time,
        "total_run_time": run.total_run_time.total_seconds(),
        "estimated_run_time": _estimated_run_time(run, now).total_seconds(),
        "estimated_start_time_delta": _estimated_start_time_delta(run, now).total_seconds(),
        "auto_scheduled": run.auto_scheduled,
        "infrastructure_document_id": run.infrastructure_document_id,
        "infrastructure_pid": run.infrastructure_pid,
        "created_by": run.created_by,
        "work_pool_id": run.work_pool_id,
        "work_pool_name": run.work_pool_name,
        "state": None if run.state is None else _state(run.state),
        "job_variables": run.job_variables,
    }


def _state(state: FlowRunState) -> dict[str, Any]:
    return {
        "id": state.id,
        "type": state.type,
        "name": state.name,
        "timestamp": state.timestamp,
        "message": state.message,
        "data": state.data,
        "state_details": state.state_details,
    }


def _estimated_run_time(run: FlowRun, now: datetime) -> timedelta:
    """``Run.estimated_run_time``."""
    if run.state_type == _RUNNING and run.state_timestamp is not None:
        return run.total_run_time + (now - run.state_timestamp)
    return run.total_run_time


def _estimated_start_time_delta(run: FlowRun, now: datetime) -> timedelta:
    """``Run.estimated_start_time_delta``."""
    expected = run.expected_start_time
    if expected is None:
        return _ZERO
    if run.start_time is not None:
        return max(run.start_time - expected, _ZERO)
    if expected < now and run.state_type not in TERMINAL_TYPES:
        return now - expected
    return _ZERO
