"""Moves a run to another state, by Prefect's rules. Knows no client."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from ...contract.flow_run import FlowRun, FlowRunState
from ...contract.state import TERMINAL_TYPES, StateDetails, StateType
from ...runs.creation import uuid7

_RUNNING, _SCHEDULED = StateType.RUNNING.value, StateType.SCHEDULED.value


def moved(
    run: FlowRun, state: StateType, now: datetime, *, name: str | None, message: str | None, data: Any
) -> FlowRun:
    """The run in its new state (``GlobalFlowPolicy``). The arguments are the state's fields."""
    before, since = run.state_type, run.state_timestamp
    details = StateDetails(flow_run_id=run.id, task_run_id=run.parent_task_run_id)
    if state is StateType.SCHEDULED:
        details.scheduled_time = now
    row = FlowRunState(
        id=uuid7(now),
        created=now,
        updated=now,
        flow_run_id=run.id,
        type=state.value,
        timestamp=now,
        name=state.value.capitalize() if name is None else name,
        message=message,
        state_details=details.model_dump(mode="json"),
        data=data,
    )
    ends = row.type in TERMINAL_TYPES
    start_time, end_time = run.start_time, run.end_time
    if before in TERMINAL_TYPES and not ends:
        end_time = None
    if start_time is None and (row.type == _RUNNING or ends):
        start_time = now
    if ends and end_time is None:
        end_time = now
    scheduled = row.type == _SCHEDULED
    left = None if before == _SCHEDULED else run.next_scheduled_start_time
    return replace(
        run,
        updated=now,
        state=row,
        state_id=row.id,
        state_type=row.type,
        state_name=row.name,
        state_timestamp=now,
        run_count=run.run_count + (row.type == _RUNNING),
        start_time=start_time,
        end_time=end_time,
        expected_start_time=now if scheduled else run.expected_start_time,
        next_scheduled_start_time=now if scheduled else left,
        total_run_time=run.total_run_time
        + (now - since if before == _RUNNING and since is not None else now - now),
    )
