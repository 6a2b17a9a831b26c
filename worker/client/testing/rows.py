"""The rows of a fake: what a Prefect server's database would hold. No I/O."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

from ...contract.encoding import dumps_text
from ...contract.flow_run import FlowRun
from ...contract.states import States
from ...runs.completion import Found, Lookups, Referred, banned_queue_name, missing, needs_queue
from ...runs.creation import NewRun
from ...runs.deployments.deployment import Deployment, WorkQueue
from ...runs.deployments.near import meant, spellings

DEFAULT_QUEUE = "default"


@dataclass(frozen=True, slots=True)
class Pool:
    """A work pool.

    Attributes:
        template: its base job template as JSON, or None for one that allows everything.
        queues: its queues by name.
    """

    id: UUID
    name: str
    template: str | None
    queues: dict[str, WorkQueue] = field(default_factory=dict)

    def queue(self, name: str) -> WorkQueue:
        """A queue of it, which is made if it is missing."""
        return self.queues.setdefault(name, WorkQueue(uuid4(), name, self.id, self.name))


class Rows:
    """Flows, deployments, work pools, variables and runs.

    Attributes:
        strict: refuse ids of rows that were not added: of flows, parent task runs, and documents.
            Otherwise every id stands for a row. Names always have to be added.
        variables: the workspace variables by name.
        states: which states are published, as by the setting WORKER_STATES.
        ends: the states that runs end in by themselves, by the ids of flows and deployments.
    """

    def __init__(self) -> None:
        self.strict = False
        self.states: States = "all"
        self.variables: dict[str, Any] = {}
        self.ends: dict[UUID, Any] = {}
        self._flows: dict[UUID, Referred] = {}
        self._deployments: dict[UUID, Deployment] = {}
        self._pools: dict[str, Pool] = {}
        self._runs: dict[UUID, FlowRun] = {}
        self._by_key: dict[tuple[UUID, str], UUID] = {}

    def flow(self, name: str) -> Referred | None:
        """The flow of this name."""
        return next((each for each in list(self._flows.values()) if each.name == name), None)

    def put_flow(self, flow: Referred) -> None:
        """Add a flow, or replace the one with its id."""
        self._flows[flow.id] = flow

    def pool(self, name: str) -> Pool:
        """The work pool of this name, which is made if it is missing."""
        if name not in self._pools:
            self._pools[name] = Pool(uuid4(), name, None)
            self._pools[name].queue(DEFAULT_QUEUE)
        return self._pools[name]

    def put_template(self, pool: str, template: str | None) -> None:
        """Set the base job template of a work pool, which is made if it is missing."""
        self._pools[pool] = replace(self.pool(pool), template=template)

    def deployment(self, which: UUID | str | None) -> Deployment | None:
        """The deployment with this id, or with this name and its flow's, with its pool's present
        template.
        """
        found = self._deployments.get(which) if isinstance(which, UUID) else self._named(which)
        if found is None or found.queue is None:
            return found
        return replace(found, job_template=self._pools[found.queue.pool_name].template)

    def _named(self, name: str | None) -> Deployment | None:
        rows = list(self._deployments.values())  # another thread may add one
        return next((each for each in rows if f"{each.flow_name}/{each.name}" == name), None)

    def meant(self, name: str | None) -> str:
        """The deployment that was probably meant by a wrong name, or an empty text."""
        flows = spellings((name or "").partition("/")[0])
        rows = [each for each in list(self._deployments.values()) if each.flow_name in flows]
        return meant(name or "", [f"{each.flow_name}/{each.name}" for each in rows])

    def put_deployment(self, deployment: Deployment) -> None:
        """Add a deployment, or replace the one with its name."""
        if old := self._named(f"{deployment.flow_name}/{deployment.name}"):
            del self._deployments[old.id]
        self._deployments[deployment.id] = deployment

    @property
    def runs(self) -> Iterable[FlowRun]:
        """All runs, in the order of their creation."""
        return self._runs.values()

    def run(self, run_id: UUID) -> FlowRun | None:
        """The run with this id."""
        return self._runs.get(run_id)

    def existing(self, run: FlowRun) -> FlowRun | None:
        """The run with the flow and the key of a new one; without a key, with its id."""
        if run.idempotency_key is None:
            return self._runs.get(run.id)
        run_id = self._by_key.get((run.flow_id, run.idempotency_key))
        return None if run_id is None else self._runs[run_id]

    def put_run(self, run: FlowRun) -> None:
        """Add a run, or replace the one with its id."""
        self._runs[run.id] = run
        if run.idempotency_key is not None:
            self._by_key[run.flow_id, run.idempotency_key] = run.id

    def lookups(self, new: NewRun) -> Lookups:
        """The rows that a run refers to. A missing queue of a deployment's pool is made."""
        run, body = new.run, new.request.body
        found = Lookups(
            flows=self._referred(self._flows, run.flow_id),
            tasks=self._referred({}, run.parent_task_run_id),
            documents=self._referred({}, run.infrastructure_document_id),
        )
        if new.inherits:
            if needs_queue(new) and not missing(new, found):
                pool, queue = self.pool(run.work_pool_name or ""), run.work_queue_name or ""
                banned = None if queue in pool.queues else banned_queue_name(queue)
                found.queues[pool.name, queue] = banned or pool.queue(queue)
            return found
        if run.deployment_id is not None and (its := self._deployments.get(run.deployment_id)):
            found.deployments[its.id] = Referred(its.id, its.name, its.flow_id, its.labels or {}, its.tags)
        if body.work_pool_name in self._pools:
            pool = self._pools[body.work_pool_name]
            found.queues[pool.name, ""] = pool.queues[DEFAULT_QUEUE]
            found.queues.update({(pool.name, each.name): each for each in pool.queues.values()})
        return found

    def _referred(self, rows: Mapping[UUID, Referred], row_id: UUID | None) -> Found[UUID, Referred]:
        found: Found[UUID, Referred] = Found()
        if row_id is not None and (row_id in rows or not self.strict):
            found[row_id] = rows.get(row_id) or Referred(row_id, labels={})
        return found


def as_text(value: Any) -> str | None:
    """A value as JSON text; None stays."""
    return None if value is None else dumps_text(value)
