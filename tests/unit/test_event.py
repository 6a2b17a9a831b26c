"""The content of an event, and which found runs get one again."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.requests import FLOW_ID, request
from worker.contract.encoding import dumps
from worker.contract.flow_run import FlowRun
from worker.contract.related import Related, RelatedRows
from worker.events.event import MAX_STATE_MESSAGE, Beginning, event, lightened, references, shortened
from worker.events.outbox import YOUNG, Found

FLOW = UUID(FLOW_ID)
DEPLOYMENT, QUEUE, POOL, TASK = (uuid4() for _ in range(4))
ROWS = RelatedRows(
    flows={FLOW: Related(FLOW, "a flow", ("z", "both"))},
    deployments={DEPLOYMENT: Related(DEPLOYMENT, "a deployment", ("y",))},
    work_queues={QUEUE: Related(QUEUE, "a queue", work_pool_id=POOL)},
    work_pools={POOL: Related(POOL, "a pool", type="process")},
    task_runs={TASK: Related(TASK, "a task", ("x",))},
)


def new(**fields: Any) -> FlowRun:
    run = request(**fields).run
    run.created_by = {"id": str(uuid4()), "type": "AUTOMATION", "display_value": "mine"}
    return replace(run, deployment_id=DEPLOYMENT, work_queue_id=QUEUE, parent_task_run_id=TASK)


def said(run: FlowRun, rows: RelatedRows = ROWS) -> dict[str, Any]:
    beginning = Beginning.of_new(run)
    assert beginning is not None
    return event(beginning, rows)


def test_related_resources_come_in_prefects_order() -> None:
    related = said(new(tags=["both", "a"]))["related"]
    assert [each["prefect.resource.role"] for each in related] == [
        *("flow", "deployment", "work-queue", "work-pool", "task-run"),
        *("tag",) * 5,
        "creator",
    ]
    assert [each["prefect.resource.id"] for each in related[5:10]] == [
        f"prefect.tag.{tag}" for tag in ("a", "both", "x", "y", "z")
    ]
    assert related[3]["prefect.work-pool.type"] == "process"


def test_a_row_that_is_not_there_is_left_out() -> None:
    assert [each["prefect.resource.role"] for each in said(new(), RelatedRows())["related"]] == ["creator"]


def test_each_reference_is_asked_for_once() -> None:
    beginnings = [each for each in (Beginning.of_new(new()) for _ in range(3)) if each is not None]
    wanted = references(beginnings)
    assert wanted.flows == {FLOW}
    assert wanted.work_queues == {QUEUE}
    assert (wanted.deployments, wanted.task_runs) == ({DEPLOYMENT}, {TASK})


def test_a_run_without_a_state_has_no_event() -> None:
    assert Beginning.of_new(replace(new(), state=None)) is None


def test_the_id_is_the_states_and_it_follows_nothing() -> None:
    run = new(state={"type": "RUNNING"})
    found = said(run)
    assert (found["id"], found["follows"]) == (run.state_id, None)
    assert found["resource"]["prefect.run-count"] == "1"


@pytest.mark.parametrize(
    ("length", "cut"),
    [(0, False), (MAX_STATE_MESSAGE, False), (MAX_STATE_MESSAGE + 10, False), (200_000, True)],
)
def test_a_long_message_is_cut_in_its_middle(length: int, cut: bool) -> None:
    message = "a" * length
    short = shortened(message)
    assert (short != message) is cut
    if cut:
        assert short.startswith("a" * 50_000)
        assert "...100000 additional characters..." in short


def test_of_a_run_that_moved_on_the_first_state_is_told() -> None:
    run = new(state={"type": "PENDING", "message": "first"})
    first = run.state
    assert first is not None
    moved = replace(run, run_count=3, state_id=uuid4(), state=replace(first, id=uuid4(), type="COMPLETED"))
    found = event(Beginning.of_found(moved, first), ROWS)
    assert found["id"] == first.id
    assert found["resource"]["prefect.run-count"] == "0"
    assert found["payload"]["validated_state"] == {"type": "PENDING", "name": "Pending", "message": "first"}


def test_a_run_waits_small_and_its_event_is_the_same() -> None:
    large = {f"{number}": [{}] for number in range(10_000)}
    fields = {"parameters": large, "context": large, "tags": [f"{number}" for number in range(10_000)]}
    run = replace(new(**fields), labels=large, job_variables=large)
    assert run.state is not None
    light = lightened(run)
    assert len(dumps(light)) < 5000
    beginning = Beginning.of_found(light, run.state)
    assert event(beginning, ROWS) == event(Beginning.of_found(run, run.state), ROWS) == said(run)
    tags = [each for each in said(run)["related"] if each["prefect.resource.role"] == "tag"]
    assert tags[0]["prefect.resource.id"] == "prefect.tag.0"
    assert len(dumps(beginning)) < 5000


@pytest.mark.parametrize(
    ("redelivered", "age", "needed"),
    [(True, timedelta(days=3), True), (False, timedelta(0), True), (False, YOUNG, False)],
)
def test_which_found_runs_have_their_event_again(redelivered: bool, age: timedelta, needed: bool) -> None:
    now = datetime.now(UTC)
    run = replace(new(), created=now - age)
    assert Found(run, redelivered).needs_event(now) is needed
    assert not Found(replace(run, state_id=None), redelivered).needs_event(now)
