"""The body of a request for a run of a deployment: Prefect's ``DeploymentFlowRunCreate``, field by
field, and which deployment.
"""

from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from .policy import FlowRunPolicy
from .request import NO_POLICY, IdempotencyKey, Labels, Name, Parameters
from .state import StateCreate


class CreateFlowRunFromDeployment(BaseModel):
    """What a producer publishes with the type ``create_flow_run_from_deployment``. An unknown field
    is refused.
    """

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
        None, description="The state that the run begins with; SCHEDULED for now by default."
    )
    name: Name = Field("", description="The run's name; two random words when it is missing or empty.")
    parameters: Parameters = Field(
        default_factory=dict,
        description="Parameters that replace the deployment's of the same name; at most 512 KiB of JSON, "
        "if the worker is not set otherwise.",
    )
    enforce_parameter_schema: bool | None = Field(
        None, description="Whether parameters must fit the deployment's schema; the deployment says else."
    )
    context: dict[str, Any] = Field(
        default_factory=dict, description="More about the run, for the flow to read."
    )
    infrastructure_document_id: UUID | None = Field(
        None, description="The block document of its infrastructure; the deployment's else."
    )
    empirical_policy: FlowRunPolicy = Field(
        default_factory=lambda: NO_POLICY, description="How the run retries."
    )
    tags: list[str] = Field(default_factory=list, description="Tags besides the deployment's.")
    idempotency_key: IdempotencyKey | None = Field(
        None,
        description="The run is created once per flow and key; later requests get the run that exists. "
        "At most 2,500 bytes.",
    )
    labels: Labels | None = Field(
        None, description="Labels besides the deployment's: strings, numbers and booleans by name."
    )
    parent_task_run_id: UUID | None = Field(
        None, description="For a subflow: the task run that stands for it."
    )
    work_queue_name: str | None = Field(
        None,
        description="Another queue of the deployment's work pool, which is made if it is not there; "
        "the deployment's else.",
    )
    job_variables: dict[str, Any] | None = Field(
        default_factory=dict, description="Overrides for the infrastructure's template."
    )
    deployment_id: UUID | None = Field(None, description="The deployment; or else its name.")
    deployment_name: str | None = Field(
        None,
        pattern="^[^/]+/[^/]+$",
        description="The deployment by the names of its flow and its own, FLOW NAME/DEPLOYMENT NAME.",
    )

    @model_validator(mode="after")
    def _one_deployment(self) -> Self:
        if (self.deployment_id is None) == (self.deployment_name is None):
            raise PydanticCustomError(
                "one_deployment", "Exactly one of deployment_id and deployment_name is needed"
            )
        return self
