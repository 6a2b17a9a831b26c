"""Makes the rows of a new run and its first state from a request and a time, by Prefect's rules.
Pure: stores nothing.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache, lru_cache
from random import random
from typing import Any
from uuid import UUID

import coolname

from ..contract.decode import FlowRunRequest
from ..contract.deployment_request import CreateFlowRunFromDeployment
from ..contract.flow_run import FlowRun, FlowRunState
from ..contract.immutable import immutable
from ..contract.kinds import CREATE, FROM_DEPLOYMENT, READ, Kind
from ..contract.policy import FlowRunPolicy
from ..contract.read_request import ReadFlowRun
from ..contract.request import CreateFlowRun
from ..contract.state import TERMINAL_STATES, StateCreate, StateDetails, StateType

# From this API version on, clients say that a run is being resumed (``IncrementFlowRunCount``).
RESUMING_SINCE = (0, 8, 4)

# Words that Prefect leaves out of names, since they read badly in logs.
# fmt: off
_LEFT_OUT = frozenset((
    "sexy", "demonic", "kickass", "heretic", "godlike", "booby", "chubby", "gay", "sloppy", "funky",
    "juicy", "beaver", "curvy", "fat", "flashy", "flat", "thick", "nippy",
))
# fmt: on

# Names that are drawn from coolname, for their words. They have nearly all of its words.
_NAMES_DRAWN = 4000

_PENDING = StateCreate(type=StateType.PENDING)
_ZERO = timedelta(0)


@immutable
class NewRun:
    """A run that is to be created, unless one with its key exists.

    Attributes:
        request: the decoded request.
        run: its row, with ``run.state`` as the row of its first state.
        added: bytes of JSON in the row that are not the request's.
        deep: its JSON may be nested deeper than some 200 levels.
        inherits: it has its deployment's tags, labels and work pool. If false, it may name a
            deployment that was not looked up.
    """

    request: FlowRunRequest[Any]
    run: FlowRun
    added: int = 0
    deep: bool = False
    inherits: bool = False


@immutable
class UnresolvedRun:
    """A run whose deployment has not been looked up yet. Its other fields are fixed, so that each
    try to create it makes the same run.

    Attributes:
        request: the decoded request.
        run_id: the run's id.
        now: as for :func:`new_run`.
        traceparent: as for :func:`new_run`.
    """

    request: FlowRunRequest[CreateFlowRunFromDeployment]
    run_id: UUID
    now: datetime
    traceparent: str | None = None


@immutable
class ReadRun:
    """A run that is to be read.

    Attributes:
        run_id: the run's id.
    """

    run_id: UUID


Requested = NewRun | UnresolvedRun | ReadRun


def requested_run(
    request: FlowRunRequest[Any], now: datetime, *, traceparent: str | None = None
) -> Requested:
    """The run that a request asks for. Arguments as for :func:`new_run`."""
    return RUNS[request.kind](request, now, traceparent)


def new_run(request: FlowRunRequest[CreateFlowRun], now: datetime, traceparent: str | None = None) -> NewRun:
    """Make the rows for a request.

    Args:
        now: with a time zone. It stands for Prefect's clock: ``created``, the state's ``timestamp``
            and, for a SCHEDULED state without one, ``scheduled_time``.
        traceparent: goes into the state's details unless they have one. Prefect does the same with
            the states that its own code makes.
    """
    body = request.body
    run = run_row(
        request,
        request.run_id or uuid7(now),
        body.state or _PENDING,
        now,
        traceparent,
        # Newer clients say themselves that a run is being resumed.
        resumes=request.api_version is None or request.api_version >= RESUMING_SINCE,
        flow_id=body.flow_id,
        flow_version=body.flow_version,
        deployment_id=body.deployment_id,
        deployment_version=None,
        work_queue_name=body.work_queue_name,
        work_queue_id=None,
        parameters=body.parameters,
        tags=body.tags,
        labels=with_system_labels({}, body.flow_id, None, body.labels),
        infrastructure_document_id=body.infrastructure_document_id,
    )
    return NewRun(request, run, deep=request.deep)


def _run_of_deployment(
    request: FlowRunRequest[CreateFlowRunFromDeployment], now: datetime, traceparent: str | None
) -> UnresolvedRun:
    return UnresolvedRun(request, request.run_id or uuid7(now), now, traceparent)


def _read_run(request: FlowRunRequest[ReadFlowRun], now: datetime, traceparent: str | None) -> ReadRun:
    return ReadRun(request.body.id)


# The function for each kind of request. Its arguments include the time and the producer's trace
# context.
RUNS: Mapping[Kind, Callable[[FlowRunRequest[Any], datetime, str | None], Requested]] = {
    CREATE: new_run,
    FROM_DEPLOYMENT: _run_of_deployment,
    READ: _read_run,
}


def run_row(
    request: FlowRunRequest[Any],
    run_id: UUID,
    asked: StateCreate,
    now: datetime,
    traceparent: str | None,
    *,
    resumes: bool = True,
    **columns: Any,
) -> FlowRun:
    """Make the row of a run, with the columns that follow from its first state.

    Args:
        asked: the first state.
        now: as for :func:`new_run`.
        traceparent: as for :func:`new_run`.
        resumes: ``empirical_policy.resuming`` means that the run is being resumed.
        columns: those in which kinds of requests differ.
    """
    body = request.body
    kind = asked.type
    state = _first_state(asked, run_id, body.parent_task_run_id, now)
    if traceparent and not state.state_details["traceparent"]:
        state.state_details["traceparent"] = traceparent
    scheduled = kind is StateType.SCHEDULED
    started = kind is StateType.RUNNING or kind in TERMINAL_STATES
    expected = (asked.state_details.scheduled_time or now) if scheduled else now
    resuming = bool(body.empirical_policy.resuming) and resumes
    policy = _policy(body.empirical_policy)
    if resuming and started:
        policy["resuming"] = False
    return FlowRun(
        id=run_id,
        created=now,
        updated=now,
        name=body.name or random_name(),
        state_id=state.id,
        state_type=state.type,
        state_name=state.name,
        state_timestamp=now,
        run_count=1 if kind is StateType.RUNNING and not resuming else 0,
        expected_start_time=expected,
        next_scheduled_start_time=expected if scheduled else None,
        start_time=now if started else None,
        end_time=now if kind in TERMINAL_STATES else None,
        total_run_time=_ZERO,
        # An empty key is no key. If it were stored, the unique index would refuse the next one.
        idempotency_key=body.idempotency_key or None,
        context=body.context,
        empirical_policy=policy,
        created_by=None if request.created_by is None else request.created_by.model_dump(mode="json"),
        infrastructure_pid=None,
        parent_task_run_id=body.parent_task_run_id,
        auto_scheduled=False,
        # As in Prefect: without a key its ORM fills in this default. With a key it uses a plain
        # insert, which does not.
        job_variables={} if body.job_variables is None and not body.idempotency_key else body.job_variables,
        state=state,
        **columns,
    )


def with_system_labels(
    inherited: Mapping[str, Any], flow_id: UUID, deployment_id: UUID | None, own: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``with_system_labels_for_flow_run`` and ``with_system_labels_for_deployment_flow_run``.

    Args:
        inherited: of the deployment, or of the flow if there is no deployment.
        own: of the request.
    """
    labels = {**inherited, "prefect.flow.id": str(flow_id)}
    if deployment_id is not None:
        labels["prefect.deployment.id"] = str(deployment_id)
    if own:
        labels |= own
    return labels


def _first_state(
    state: StateCreate, run_id: UUID, parent_task_run_id: UUID | None, now: datetime
) -> FlowRunState:
    details = state.state_details
    if details.model_fields_set or state.type is StateType.SCHEDULED:
        stored = details.model_dump(mode="json")
        if state.type is StateType.SCHEDULED and details.scheduled_time is None:
            stored["scheduled_time"] = now.isoformat().replace("+00:00", "Z")
    else:
        stored = dict(_NO_DETAILS)
    stored["flow_run_id"] = str(run_id)
    if parent_task_run_id is not None:
        stored["task_run_id"] = str(parent_task_run_id)
    return FlowRunState(
        id=uuid7(now),
        created=now,
        updated=now,
        flow_run_id=run_id,
        type=state.type.value,
        timestamp=now,
        name=state.type.value.capitalize() if state.name is None else state.name,
        message=state.message,
        state_details=stored,
        data=_stored_data(state.data),
    )


def _stored_data(data: Any) -> Any:
    """Drop a result that is marked as not persisted (``_validate_proposed_state``)."""
    if isinstance(data, dict) and data.get("type") == "unpersisted":
        return None
    return data


def _policy(policy: FlowRunPolicy) -> dict[str, Any]:
    # Most requests have none, and copying a dict is quicker than dumping a model.
    return policy.model_dump(mode="json") if policy.model_fields_set else dict(_NO_POLICY, pause_keys=[])


_NO_DETAILS = StateDetails().model_dump(mode="json")
_NO_POLICY = FlowRunPolicy().model_dump(mode="json")


def random_name() -> str:
    """Two random words, such as ``misty-otter``."""
    firsts, seconds = _words()
    while True:
        first, second = firsts[int(random() * len(firsts))], seconds[int(random() * len(seconds))]
        if first != second:
            return f"{first}-{second}"


@cache
def _words() -> tuple[Sequence[str], Sequence[str]]:
    """The first and the second words of many names by coolname, as often as they occur there.

    coolname takes 2.5 us longer for a name than two draws from these take.
    """
    drawn = (coolname.generate(2) for _ in range(_NAMES_DRAWN))
    firsts, seconds = zip(*(words for words in drawn if not _LEFT_OUT.intersection(words)), strict=True)
    return firsts, seconds


def uuid7(now: datetime) -> UUID:
    """A time-ordered UUID (RFC 9562). New rows then go to one end of an index."""
    return UUID(int=_start_of_uuid7(now) | next(_rest_of_uuid7))


# A batch has one time. The two parts take 0.8 us less than a whole UUID at a time.
@lru_cache(maxsize=16)
def _start_of_uuid7(now: datetime) -> int:
    return int(now.timestamp() * 1000) << 80


def _random_rest_of_uuid7() -> Iterator[int]:
    """Version, variant, and 74 random bits."""
    while True:
        # Many at once: a system call for each id took a fifteenth of a request's time.
        many = os.urandom(10 * 400)
        for start in range(0, len(many), 10):
            bits = int.from_bytes(many[start : start + 10])
            yield 0x7 << 76 | (bits >> 68 & 0xFFF) << 64 | 0x2 << 62 | bits & (1 << 62) - 1


_rest_of_uuid7 = _random_rest_of_uuid7()
