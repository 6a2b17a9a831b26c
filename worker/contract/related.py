"""Rows of other tables that a run refers to, as far as its event names them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

# What Prefect takes in an event, by default (``server.events.maximum_related_resources``). Beyond
# it neither its own endpoint makes a run, nor can the state of one be changed.
MAX_RELATED = 100
# The same of an event's name, in characters (``maximum_event_name_length``); its own endpoint makes
# no run beyond it.
MAX_EVENT_NAME = 1024


@dataclass(frozen=True, slots=True)
class Related:
    """A flow, a deployment, a work queue, a work pool or a task run.

    Attributes:
        work_pool_id: of a work queue.
        type: of a work pool.
    """

    id: UUID
    name: str
    tags: Sequence[str] = ()
    work_pool_id: UUID | None = None
    type: str = ""


@dataclass(frozen=True, slots=True)
class RelatedRows:
    """What some runs refer to, each kind by its ids; a row that isn't there is left out."""

    flows: Mapping[UUID, Related] = field(default_factory=dict)
    deployments: Mapping[UUID, Related] = field(default_factory=dict)
    work_queues: Mapping[UUID, Related] = field(default_factory=dict)
    work_pools: Mapping[UUID, Related] = field(default_factory=dict)
    task_runs: Mapping[UUID, Related] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class References:
    """The rows that some runs refer to, each kind by its ids."""

    flows: frozenset[UUID]
    deployments: frozenset[UUID]
    work_queues: frozenset[UUID]
    task_runs: frozenset[UUID]
