"""States of a flow run, requested and stored: Prefect's ``StateCreate`` and ``StateDetails``."""

from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError


class StateType(str, Enum):
    """The nine state types."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CRASHED = "CRASHED"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"


TERMINAL_STATES = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED})
# The stored values.
TERMINAL_TYPES = frozenset(state.value for state in TERMINAL_STATES)


def _aware(value: Any, handler: ValidatorFunctionWrapHandler) -> datetime:
    """A datetime read by pydantic or, if that fails, by pendulum. Without a zone it is UTC."""
    try:
        parsed: datetime = handler(value)
    except ValueError:
        parsed = _parsed_by_pendulum(value)
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    try:
        parsed.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("datetime_out_of_range", "Input cannot be expressed in UTC") from None
    return parsed


def _parsed_by_pendulum(value: Any) -> datetime:
    # Imported only if pydantic fails. Prefect's DateTime reads in the same two steps, as its errors
    # show.
    try:
        import pendulum
    except ModuleNotFoundError:  # the client is installed alone
        raise PydanticCustomError("value_error", "value is not a valid datetime") from None
    try:
        parsed = pendulum.parse(value, strict=True)
    except ValueError:
        raise
    except Exception as error:
        raise PydanticCustomError("value_error", "value is not a valid datetime") from error
    if not isinstance(parsed, datetime):
        raise ValueError(f"value is not a valid datetime it is a {type(parsed)}")
    # Make it a datetime of the standard library, without pendulum's zone names.
    return datetime.fromisoformat(parsed.isoformat())


DateTime = Annotated[datetime, WrapValidator(_aware)]


class StateDetails(BaseModel):
    """Details of a state besides its type. Unknown fields are ignored, as in Prefect."""

    model_config = ConfigDict(extra="ignore")

    flow_run_id: UUID | None = Field(default=None, description="The run of this state. The worker sets it.")
    task_run_id: UUID | None = Field(
        default=None, description="For a subflow run: its task run in the parent flow."
    )
    child_flow_run_id: UUID | None = Field(
        default=None, description="For a subflow's task run: the subflow's run."
    )
    scheduled_time: DateTime | None = Field(default=None, description="The start time of a SCHEDULED run.")
    cache_key: str | None = None
    cache_expiration: DateTime | None = None
    deferred: bool | None = False
    untrackable_result: bool = False
    pause_timeout: DateTime | None = None
    pause_reschedule: bool = False
    pause_key: str | None = None
    run_input_keyset: dict[str, str] | None = None
    refresh_cache: bool | None = None
    retriable: bool | None = None
    transition_id: UUID | None = None
    task_parameters_id: UUID | None = None
    traceparent: str | None = Field(
        default=None, description="W3C trace context of the span that made this state."
    )
    deployment_concurrency_lease_id: UUID | None = None


class StateCreate(BaseModel):
    """A run's first state."""

    model_config = ConfigDict(extra="forbid")

    type: StateType = Field(description="The state's type.")
    name: str | None = Field(default=None, description="The state's name (default: the type's).")
    message: str | None = Field(default=None, description="A message for people.")
    data: Any | None = Field(default=None, description="Any JSON value.")
    state_details: StateDetails = Field(default_factory=StateDetails, description="The state's details.")
