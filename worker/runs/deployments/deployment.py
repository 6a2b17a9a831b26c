"""A deployment, with what its work queue and its work pool say of its runs."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class WorkQueue:
    """A work queue and its work pool, by ids and names."""

    id: UUID
    name: str
    pool_id: UUID
    pool_name: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """A row of ``deployment``.

    What is checked against is text, by which a check that was prepared once is found again.

    Attributes:
        size: of the parameters as JSON, in characters.
        deep: whether the parameters are nested deeper than some 200 levels.
        work_queue_name: as the row has it; it may be there without a queue.
        parameter_schema: JSON; None if the deployment has none.
        job_variables: JSON; those of all its runs.
        queue: None for a deployment without a work pool.
        job_template: JSON; the base job template of the work pool, None without one.
    """

    id: UUID
    flow_id: UUID
    flow_name: str
    name: str
    version: str | None
    tags: list[str]
    labels: dict[str, Any] | None
    parameters: dict[str, Any]
    size: int
    deep: bool
    parameter_schema: str | None
    enforce_parameter_schema: bool
    job_variables: str | None
    infrastructure_document_id: UUID | None
    work_queue_id: UUID | None
    work_queue_name: str | None
    queue: WorkQueue | None
    job_template: str | None
