"""The body of a request that reads a run: what Prefect's endpoint takes in its path."""

from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field


class ReadFlowRun(BaseModel):
    """A request of the type ``read_flow_run``. Unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"id": "0193a1c2-7c5e-7d2a-9b0e-3f6a1d2c4b5a"}]},
    )

    id: UUID = Field(description="The run to read.")
