"""The body of a create request: Prefect's ``FlowRunCreate``, field by field."""

import json
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from .policy import DEPRECATED, FlowRunPolicy
from .state import StateCreate

# A Prefect server's default of PREFECT_SERVER_API_MAX_PARAMETER_SIZE, in bytes.
MAX_PARAMETER_SIZE = 524_288
# The worker's default limit for a body, in bytes.
MAX_BODY_BYTES = 1_048_576
# As a limit: parameters may have any size, as with Prefect's setting.
NO_LIMIT = 0
# PostgreSQL's unique index accepts rows of up to 2,704 bytes, 28 of them for the flow's id and
# headers. A longer key fits only if it compresses well. SQLite has the same limit, so that both
# databases refuse the same requests.
MAX_KEY_BYTES = 2_500
# Python writes at most six bytes of JSON for one byte of a body (a control character; 1e15 takes
# five). A body this many times smaller than the limit is sure to fit, and need not be written to be
# measured.
_LONGEST_EXPANSION = 8

# Shared: most requests have no policy, and policies never change.
NO_POLICY = FlowRunPolicy()


def limit_to_check(body_size: int, max_parameter_size: int) -> int:
    """The limit for a body's parameters. It is the context of the body's validation.

    Args:
        body_size: the size of the body, in bytes.
        max_parameter_size: the limit for the parameters as Python writes them, in bytes, or
            :data:`NO_LIMIT`. A body too small to exceed the limit gets :data:`NO_LIMIT` as well.
    """
    return NO_LIMIT if body_size * _LONGEST_EXPANSION <= max_parameter_size else max_parameter_size


def _parameter_size(parameters: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """``validate_parameter_size``."""
    limit: int = MAX_PARAMETER_SIZE if info.context is None else info.context
    if parameters and limit != NO_LIMIT:
        size = len(json.dumps(parameters, separators=(",", ":")).encode())
        if size > limit:
            raise ValueError(
                f"Flow run parameters must be less than {limit:,} bytes when serialized (got {size:,} bytes)."
            )
    return parameters


def _key_size(key: str) -> str:
    size = len(key.encode("utf-8", "surrogatepass"))
    if size > MAX_KEY_BYTES:
        raise PydanticCustomError(
            "string_too_long",
            "An idempotency key should have at most {max_bytes} bytes in UTF-8, not {size}",
            {"max_bytes": MAX_KEY_BYTES, "size": size},
        )
    return key


def _name(value: Any) -> Any:
    return value or ""


def _labels(value: Any) -> Any:
    return {} if value is None else value


# Prefect accepts NaN and infinities, stores null, and can't read that as a label: its lists of runs
# answer 500 from then on.
_Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Labels = Annotated[dict[str, StrictBool | StrictInt | _Float | str], BeforeValidator(_labels)]
Name = Annotated[str, BeforeValidator(_name)]
Parameters = Annotated[dict[str, Any], AfterValidator(_parameter_size)]
IdempotencyKey = Annotated[str, AfterValidator(_key_size)]


class CreateFlowRun(BaseModel):
    """A request to create a run. Unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "flow_id": "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11",
                    "name": "order-4711",
                    "parameters": {"order": 4711},
                    "tags": ["orders"],
                    "idempotency_key": "order-4711",
                    "state": {"type": "SCHEDULED"},
                }
            ]
        },
    )

    state: StateCreate | None = Field(default=None, description="The run's first state (default: PENDING).")
    name: Name = Field(default="", description="The run's name. If it is missing or empty: two random words.")
    flow_id: UUID = Field(description="The flow to run.")
    flow_version: str | None = Field(default=None, description="The flow's version.")
    parameters: Parameters = Field(
        default_factory=dict,
        description="The flow's parameters: at most 512 KiB of JSON, unless the worker has another limit.",
    )
    context: dict[str, Any] = Field(
        default_factory=dict, description="Additional context, for the flow to read."
    )
    parent_task_run_id: UUID | None = Field(
        default=None, description="For a subflow: its task run in the parent flow."
    )
    infrastructure_document_id: UUID | None = Field(
        default=None, description="The infrastructure's block document."
    )
    empirical_policy: FlowRunPolicy = Field(
        default_factory=lambda: NO_POLICY, description="How the run retries."
    )
    tags: list[str] = Field(default_factory=list, description="Tags.")
    labels: Labels | None = Field(
        default_factory=dict, description="Labels: strings, numbers and booleans by name."
    )
    idempotency_key: IdempotencyKey | None = Field(
        default=None,
        description="The run is created once per flow and key; later requests get the run that exists. "
        "At most 2,500 bytes.",
    )
    work_pool_name: str | None = Field(default=None, description="The work pool to run it in.")
    work_queue_name: str | None = Field(
        default=None, description="The queue in the work pool (default: the pool's default queue)."
    )
    job_variables: dict[str, Any] | None = Field(
        default=None, description="Overrides for the infrastructure's template."
    )
    deployment_id: UUID | None = Field(
        default=None, description="The deployment that the run belongs to.", json_schema_extra=DEPRECATED
    )
