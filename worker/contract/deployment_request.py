"""The body of a request for a run of a deployment: the fields of Prefect's
``DeploymentFlowRunCreate``, and the deployment.
"""

from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from .policy import FlowRunPolicy
from .request import NO_POLICY, IdempotencyKey, Labels, Name, Parameters
from .state import StateCreate

# FLOW NAME/DEPLOYMENT NAME, as a regular expression. Prefect allows no slash in either name.
DEPLOYMENT_NAME = "^[^/]+/[^/]+$"


class CreateFlowRunFromDeployment(BaseModel):
    """A request of the type ``create_flow_run_from_deployment``. Unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "deployment_name": "invoices/nightly",
                    "parameters": {"order": 4711},
                    "idempotency_key": "order-4711",
                }
            ],
            "oneOf": [{"required": ["deployment_id"]}, {"required": ["deployment_name"]}],
        },
    )

    state: StateCreate | None = Field(
        default=None, description="The run's first state (default: SCHEDULED, to start now)."
    )
    name: Name = Field(default="", description="The run's name. If it is missing or empty: two random words.")
    parameters: Parameters = Field(
        default_factory=dict,
        description="Parameters that replace the deployment's of the same name: at most 512 KiB of JSON, "
        "unless the worker has another limit.",
    )
    enforce_parameter_schema: bool | None = Field(
        default=None, description="Enforce the parameter schema (default: the deployment's setting)."
    )
    context: dict[str, Any] = Field(
        default_factory=dict, description="Additional context, for the flow to read."
    )
    infrastructure_document_id: UUID | None = Field(
        default=None, description="The infrastructure's block document (default: the deployment's)."
    )
    empirical_policy: FlowRunPolicy = Field(
        default_factory=lambda: NO_POLICY, description="How the run retries."
    )
    tags: list[str] = Field(default_factory=list, description="Tags, in addition to the deployment's.")
    idempotency_key: IdempotencyKey | None = Field(
        default=None,
        description="The run is created once per flow and key; later requests get the run that exists. "
        "At most 2,500 bytes.",
    )
    labels: Labels | None = Field(
        default=None,
        description="Labels, in addition to the deployment's: strings, numbers and booleans by name.",
    )
    parent_task_run_id: UUID | None = Field(
        default=None, description="For a subflow: its task run in the parent flow."
    )
    work_queue_name: str | None = Field(
        default=None,
        description="A queue of the deployment's work pool, created if it is missing "
        "(default: the deployment's queue).",
    )
    job_variables: dict[str, Any] | None = Field(
        default_factory=dict, description="Overrides for the infrastructure's template."
    )
    deployment_id: UUID | None = Field(
        default=None, description="The deployment's id, unless its name is given."
    )
    deployment_name: str | None = Field(
        default=None,
        pattern=DEPLOYMENT_NAME,
        description="The deployment's name, as FLOW NAME/DEPLOYMENT NAME.",
    )

    @model_validator(mode="after")
    def _one_deployment(self) -> Self:
        if (self.deployment_id is None) == (self.deployment_name is None):
            raise PydanticCustomError(
                "one_deployment", "Exactly one of deployment_id and deployment_name is needed"
            )
        return self
