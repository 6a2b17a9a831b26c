"""The event of a new run, made from the run, its first state and the rows that it refers to, as in
Prefect's ``models/events.py``. Pure: sends nothing and reads nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from worker.contract.flow_run import FlowRun, FlowRunState
from worker.contract.immutable import immutable
from worker.contract.related import MAX_EVENT_NAME, MAX_RELATED, References, Related, RelatedRows
from worker.contract.state import StateType

# Longest state message in an event, in characters (Prefect's ``TRUNCATE_STATE_MESSAGES_AT``).
MAX_STATE_MESSAGE = 100_000
# Largest event that Prefect's API accepts by default, in bytes
# (``server.events.maximum_size_bytes``). It drops larger ones.
MAX_EVENT_BYTES = 1_500_000
# Bytes of it for the time of receipt, which the server adds.
RECEIVED_BYTES = 100

_CREATORS = {"DEPLOYMENT": "deployment", "AUTOMATION": "automation"}


@immutable
class Beginning:
    """A run at its creation, with the fields of its event only: other fields may be large.

    Attributes:
        run_count: the run count of the first state.
        message: the state's message, cut as in Prefect.
        pause_reschedule: the field of a PAUSED state.
    """

    id: UUID
    name: str
    run_count: int
    tags: Sequence[str]
    created_by: dict[str, Any] | None
    flow_id: UUID
    deployment_id: UUID | None
    work_queue_id: UUID | None
    parent_task_run_id: UUID | None
    state_id: UUID
    state_type: str
    state_name: str
    message: str
    timestamp: datetime
    pause_reschedule: bool

    @classmethod
    def of_new(cls, run: FlowRun) -> "Beginning | None":
        """The beginning of a new run. None if it has no state, and so no event."""
        return None if run.state is None else cls._of(run, run.state, run.run_count)

    @classmethod
    def of_found(cls, run: FlowRun, first: FlowRunState) -> "Beginning":
        """The beginning of an existing run, which may have changed its state since.

        Args:
            first: its first state.
        """
        return cls._of(run, first, int(first.type == StateType.RUNNING))

    @classmethod
    def _of(cls, run: FlowRun, state: FlowRunState, run_count: int) -> "Beginning":
        return cls(
            id=run.id,
            name=run.name,
            run_count=run_count,
            tags=_first_tags(run),
            created_by=run.created_by,
            flow_id=run.flow_id,
            deployment_id=run.deployment_id,
            work_queue_id=run.work_queue_id,
            parent_task_run_id=run.parent_task_run_id,
            state_id=state.id,
            state_type=state.type,
            state_name=state.name,
            # Prefect cuts it when it stores the state, and again for the event.
            message=shortened(shortened(state.message)),
            timestamp=state.timestamp.astimezone(UTC),
            pause_reschedule=bool(state.state_details.get("pause_reschedule")),
        )


def lightened(run: FlowRun) -> FlowRun:
    """The run without its large fields, which :meth:`Beginning.of_found` does not need."""
    return replace(
        run,
        parameters={},
        context={},
        empirical_policy={},
        tags=_first_tags(run),
        labels=None,
        job_variables=None,
        state=None,
    )


def references(runs: Iterable[Beginning]) -> References:
    """The ids of the rows that these runs' events name."""
    runs = list(runs)
    return References(
        flows=frozenset(run.flow_id for run in runs),
        deployments=frozenset(run.deployment_id for run in runs if run.deployment_id),
        work_queues=frozenset(run.work_queue_id for run in runs if run.work_queue_id),
        task_runs=frozenset(run.parent_task_run_id for run in runs if run.parent_task_run_id),
    )


def event(run: Beginning, rows: RelatedRows) -> dict[str, Any]:
    """The event that Prefect emits for a run's first state (``flow_run_state_change_event``), in
    the form of ``POST /api/events``.

    Two parts are cut to the API's limits. One is the event's name: Prefect itself would make no run
    for a longer one. The other is the related resources: rows may have got more tags since then.
    """
    return {
        "occurred": run.timestamp,
        "event": f"prefect.flow-run.{run.state_name}"[:MAX_EVENT_NAME],
        "resource": {
            "prefect.resource.id": f"prefect.flow-run.{run.id}",
            "prefect.resource.name": run.name,
            "prefect.run-count": str(run.run_count),
            "prefect.state-message": run.message,
            "prefect.state-name": run.state_name,
            "prefect.state-timestamp": run.timestamp.isoformat(),
            "prefect.state-type": run.state_type,
        },
        "related": _related(run, rows),
        "payload": {
            "intended": {"from": None, "to": run.state_type},
            "initial_state": None,
            "validated_state": _state(run),
        },
        # The state's id: the next state's event refers to it in ``follows``.
        "id": run.state_id,
        "follows": None,
    }


def shortened(message: str | None) -> str:
    """A message of about ``MAX_STATE_MESSAGE`` characters at most: its two ends, and the number of
    characters left out (``truncated_to``).
    """
    if not message or len(message) <= MAX_STATE_MESSAGE:
        return message or ""
    half = MAX_STATE_MESSAGE // 2
    cut = f"{message[:half]}...{len(message) - 2 * half} additional characters...{message[-half:]}"
    return cut if len(cut) < len(message) else message


def _state(run: Beginning) -> dict[str, str]:
    """``state_payload``."""
    payload = {"type": run.state_type}
    if run.state_name:
        payload["name"] = run.state_name
    if run.message:
        payload["message"] = run.message
    if run.state_type == StateType.PAUSED:
        payload["pause_reschedule"] = str(run.pause_reschedule).lower()
    return payload


def _related(run: Beginning, rows: RelatedRows) -> list[dict[str, str]]:
    """``_flow_run_related_resources_from_orm``, in its order."""
    named: list[dict[str, str]] = []
    tags = set(run.tags)
    for kind, row in _rows(run, rows):
        resource = {
            "prefect.resource.id": f"prefect.{kind}.{row.id}",
            "prefect.resource.role": kind,
            "prefect.resource.name": row.name,
        }
        if kind == "work-pool":
            resource["prefect.work-pool.type"] = row.type
        named.append(resource)
        tags.update(row.tags)
    creator = list(_creator(run.created_by))
    room = MAX_RELATED - len(named) - len(creator)
    tagged = [
        {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
        for tag in sorted(tags)[:room]
    ]
    return [*named, *tagged, *creator]


def _first_tags(run: FlowRun) -> list[str]:
    """The tags that can be in the event: the first ``MAX_RELATED``, sorted."""
    return sorted(set(run.tags or ()))[:MAX_RELATED]


def _rows(run: Beginning, rows: RelatedRows) -> Iterator[tuple[str, Related]]:
    queue = rows.work_queues.get(run.work_queue_id) if run.work_queue_id else None
    found = (
        ("flow", rows.flows.get(run.flow_id)),
        ("deployment", rows.deployments.get(run.deployment_id) if run.deployment_id else None),
        ("work-queue", queue),
        ("work-pool", rows.work_pools.get(queue.work_pool_id) if queue and queue.work_pool_id else None),
        ("task-run", rows.task_runs.get(run.parent_task_run_id) if run.parent_task_run_id else None),
    )
    return ((kind, row) for kind, row in found if row is not None)


def _creator(created_by: dict[str, Any] | None) -> Iterator[dict[str, str]]:
    """``_provenance_as_related_resources``."""
    kind = _CREATORS.get((created_by or {}).get("type", ""))
    if created_by is None or kind is None:
        return
    creator = {
        "prefect.resource.id": f"prefect.{kind}.{created_by['id']}",
        "prefect.resource.role": "creator",
    }
    if created_by.get("display_value"):
        creator["prefect.resource.name"] = created_by["display_value"]
    yield creator
