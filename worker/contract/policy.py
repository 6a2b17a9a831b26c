"""A run's policy and its creator: Prefect's ``FlowRunPolicy`` and ``CreatedBy``."""

from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

# For the schema only: pydantic's own mark warns at run time, at every access.
DEPRECATED: JsonDict = {"deprecated": True}


class FlowRunPolicy(BaseModel):
    """How a run retries and pauses."""

    model_config = ConfigDict(extra="ignore")

    max_retries: int = Field(
        default=0, description="Deprecated; use ``retries``.", json_schema_extra=DEPRECATED
    )
    # Prefect accepts NaN and infinities, stores null, and can't read that: see the labels.
    retry_delay_seconds: float = Field(
        default=0,
        allow_inf_nan=False,
        description="Deprecated; use ``retry_delay``.",
        json_schema_extra=DEPRECATED,
    )
    retries: int | None = Field(default=None, description="Number of retries of a failed run.")
    retry_delay: int | None = Field(default=None, description="Seconds between two retries.")
    pause_keys: set[str] | None = Field(default_factory=set, description="Pauses that the run has passed.")
    resuming: bool | None = Field(default=False, description="Whether the run is being resumed from a pause.")
    retry_type: Literal["in_process", "reschedule"] | None = Field(
        default=None, description="The kind of the current retry."
    )

    @model_validator(mode="before")
    @classmethod
    def populate_deprecated_fields(cls, values: Any) -> Any:
        """Fill ``retries`` and ``retry_delay`` from the fields that they replace
        (``set_run_policy_deprecated_fields``).
        """
        if isinstance(values, dict):
            if not values.get("retries") and values.get("max_retries", 0) != 0:
                values["retries"] = values["max_retries"]
            if not values.get("retry_delay") and values.get("retry_delay_seconds", 0) != 0:
                values["retry_delay"] = values["retry_delay_seconds"]
        return values


class CreatedBy(BaseModel):
    """Who made a run."""

    id: UUID | None = Field(default=None, description="The creator's id.")
    type: str | None = Field(
        default=None, description="The kind of creator. The automation headers give AUTOMATION."
    )
    display_value: str | None = Field(default=None, description="The creator's name.")
