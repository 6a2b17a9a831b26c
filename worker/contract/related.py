"""Rows of other tables that a run's event names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

# Most related resources of an event in Prefect, by default
# (``server.events.maximum_related_resources``). With more, Prefect makes no run and changes no
# state.
MAX_RELATED = 100
# Longest event name in Prefect, in characters (``maximum_event_name_length``).
MAX_EVENT_NAME = 1024


@dataclass(frozen=True, slots=True)
class Related:
    """A flow, a deployment, a work queue, a work pool or a task run.

    Attributes:
        work_pool_id: the pool of a work queue.
        type: the type of a work pool.
    """

    id: UUID
    name: str
    tags: Sequence[str] = ()
    work_pool_id: UUID | None = None
    type: str = ""


@dataclass(frozen=True, slots=True)
class RelatedRows:
    """The rows that some runs refer to, by kind and id. Missing rows are left out."""

    flows: Mapping[UUID, Related] = field(default_factory=dict)
    deployments: Mapping[UUID, Related] = field(default_factory=dict)
    work_queues: Mapping[UUID, Related] = field(default_factory=dict)
    work_pools: Mapping[UUID, Related] = field(default_factory=dict)
    task_runs: Mapping[UUID, Related] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class References:
    """The ids of the rows that some runs refer to, by kind."""

    flows: frozenset[UUID]
    deployments: frozenset[UUID]
    work_queues: frozenset[UUID]
    task_runs: frozenset[UUID]
