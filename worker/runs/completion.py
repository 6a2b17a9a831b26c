"""Completes a new run in a Prefect server's database: its work queue and its labels come from the
rows that it refers to. Refuses it if they are missing. Pure: the store looks the rows up.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from ..contract.allowed import Allowed
from ..contract.errors import IntegrityConflict, Refusal, Unprocessable, WorkPoolNotFound
from ..contract.flow_run import FlowRun
from .creation import NewRun, with_system_labels
from .deployments.deployment import WorkQueue
from .unusable import unusable

# Prefect's names must not contain these characters, since its URLs contain the names.
BANNED_CHARACTERS = "/%&><"

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Referred:
    """A row that runs refer to, with the columns that matter to them.

    Attributes:
        flow_id: of a deployment.
        labels: None if the row's value is invalid.
        tags: the valid ones: Prefect's events have no others.
    """

    id: UUID
    name: str = ""
    flow_id: UUID | None = None
    labels: dict[str, Any] | None = None
    tags: Collection[str] = ()


class Found(dict[Key, Value]):
    """Rows by their keys.

    Attributes:
        refusal: the answer to requests for any of these rows, if none can be read; else None.
    """

    refusal: Refusal | None = None


@dataclass(slots=True)
class Lookups:
    """The rows that the runs of a batch refer to.

    Attributes:
        queues: by the names of work pool and work queue. An empty queue name is the pool's default
            queue, or None if it has none. A refusal if the queue can't be read or made.
    """

    flows: Mapping[UUID, Referred] = field(default_factory=dict)
    deployments: Found[UUID, Referred] = field(default_factory=Found)
    tasks: Found[UUID, Referred] = field(default_factory=Found)
    documents: Found[UUID, Referred] = field(default_factory=Found)
    queues: Found[tuple[str, str], WorkQueue | Refusal | None] = field(default_factory=Found)


def complete(new: NewRun, lookups: Lookups, allowed: Allowed) -> None:
    """Fill in a run's labels and its work queue from the rows that it refers to.

    Raises:
        Refusal: the request is refused, even if its run exists.
    """
    run = new.run
    if not new.inherits:
        check_allowed(run, lookups, allowed)
        run.labels = _labels(new, lookups)
    queue = _queue(new, lookups)
    if queue is not None:
        run.work_queue_id, run.pool_queue_name = queue.id, queue.name
        run.work_pool_id, run.work_pool_name = queue.pool_id, queue.pool_name


def missing(new: NewRun, lookups: Lookups) -> Refusal | None:
    """The refusal of a run that can't be created: a row that it refers to is missing, or Prefect's
    server could not handle the run. It does not hold for a run that exists, since Prefect inserts
    before it checks.
    """
    run = new.run
    if run.flow_id not in lookups.flows:
        return IntegrityConflict(f"There is no flow {run.flow_id}.")
    deployment = None if new.inherits else run.deployment_id
    if deployment is not None and lookups.deployments.refusal:
        return lookups.deployments.refusal
    for what, value, found in (
        ("parent task run", run.parent_task_run_id, lookups.tasks),
        ("infrastructure document", run.infrastructure_document_id, lookups.documents),
    ):
        if value is not None and value not in found:
            return found.refusal or IntegrityConflict(f"There is no {what} {value}.")
    rows = [lookups.flows[run.flow_id]]
    if deployment is not None and deployment in lookups.deployments:
        rows.append(lookups.deployments[deployment])
    if run.parent_task_run_id is not None:
        rows.append(lookups.tasks[run.parent_task_run_id])
    return unusable(new, [row.tags for row in rows])


def check_allowed(run: FlowRun, lookups: Lookups, allowed: Allowed) -> None:
    """Raise NotAllowed over the flow or the deployment of a request that names them by ids. The id
    of a missing one counts as its name. In a database of our own all ids do.
    """
    if allowed.flows.limited:
        flow = lookups.flows.get(run.flow_id)
        allowed.flows.check("flow", flow.name if flow else str(run.flow_id))
    if allowed.deployments.limited and run.deployment_id is not None:
        name = str(run.deployment_id)
        if (deployment := lookups.deployments.get(run.deployment_id)) and deployment.flow_id:
            flow = lookups.flows.get(deployment.flow_id)
            name = f"{flow.name if flow else deployment.flow_id}/{deployment.name}"
        allowed.deployments.check("deployment", name)


def needs_queue(new: NewRun) -> bool:
    """True if a run of a deployment names another queue of its work pool. A missing one is made."""
    return new.inherits and new.run.work_pool_id is not None and new.run.work_queue_id is None


def banned_queue_name(name: str) -> Refusal | None:
    """The refusal of a run whose missing work queue can't be made; None if its name is valid."""
    if not any(each in BANNED_CHARACTERS for each in name):
        return None
    return Unprocessable(
        f"There is no work queue '{name}', and none may have {BANNED_CHARACTERS} in its name."
    )


def _queue(new: NewRun, lookups: Lookups) -> WorkQueue | None:
    """``WorkerLookups``: a queue by the names of pool and queue, or the pool's default queue."""
    pool_name = new.run.work_pool_name if needs_queue(new) else None
    if not new.inherits:
        pool_name = new.request.body.work_pool_name
    if not pool_name:
        return None
    queue_name = new.request.body.work_queue_name or ""
    found = lookups.queues.get((pool_name, queue_name), lookups.queues.refusal)
    if isinstance(found, Refusal):
        raise found
    if found is None and not new.inherits:
        if queue_name:
            raise WorkPoolNotFound(f"Work pool queue '{pool_name}/{queue_name}' not found.")
        if (pool_name, "") not in lookups.queues:
            raise WorkPoolNotFound(f'Work pool "{pool_name}" not found.')
    return found


def _labels(new: NewRun, lookups: Lookups) -> dict[str, Any]:
    run = new.run
    deployment = run.deployment_id and lookups.deployments.get(run.deployment_id)
    row = deployment or lookups.flows.get(run.flow_id)
    if row is not None and row.labels is None:
        table = "deployment" if deployment else "flow"
        raise Unprocessable(f"The {table} {row.id} can't be used: no valid value in {table}.labels")
    flow_id = deployment.flow_id if deployment and deployment.flow_id else run.flow_id
    deployment_id = deployment.id if deployment else None
    return with_system_labels(
        row.labels or {} if row else {}, flow_id, deployment_id, new.request.body.labels
    )
