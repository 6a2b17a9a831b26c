"""A deployment, with its work queue and its work pool."""

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

    Schema, job variables and template are text, which is the key of a prepared check.

    Attributes:
        size: of the parameters as JSON, in characters.
        deep: the parameters are nested deeper than some 200 levels.
        described: some parameter may be described by its kind.
        work_queue_name: the row's value; a row may have it without a queue.
        parameter_schema: JSON; None if the deployment has none.
        job_variables: JSON, for all its runs.
        queue: None for a deployment without a work pool.
        job_template: JSON of the work pool's base job template; None without a pool.
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
    described: bool
    parameter_schema: str | None
    enforce_parameter_schema: bool
    job_variables: str | None
    infrastructure_document_id: UUID | None
    work_queue_id: UUID | None
    work_queue_name: str | None
    queue: WorkQueue | None
    job_template: str | None
