"""The same request to Prefect's API and to a worker: the same status and the same body."""

import json
import os
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conformance.cases import BROKEN_AT_PREFECT, CASES, FLOW, STATES, Case, written_for
from tests.conformance.comparison import comparable, differences
from tests.conformance.conftest import Answers, Both
from tests.conformance.odd_runs import nested, tags

GENERATED = int(os.environ.get("WORKER_TEST_GENERATED", "200"))


def assert_equal(answers: Answers, body: bytes) -> None:
    (prefect_status, prefect), (our_status, ours) = answers.prefect, answers.ours
    found = list(differences(prefect, ours))
    assert prefect_status == our_status, (
        f"{body[:500]!r}\nPrefect {prefect_status}: {prefect}\nwe {our_status}: {ours}"
    )
    assert not found, (
        f"{body[:500]!r}\n" + "\n".join(found) + f"\nPrefect: {json.dumps(prefect)}\nwe: {json.dumps(ours)}"
    )


async def test_enumerated_cases(both: Both, flow_id: str) -> None:
    """One test runs all cases, since each takes a few milliseconds. It reports each difference."""
    unequal: list[str] = []
    for case in CASES:
        body = case.body(flow_id)
        try:
            assert_equal(await both.answers(flow_id, body, case.headers), body)
        except AssertionError as error:
            unequal.append(f"{case.name}: {error}")
    assert not unequal, f"{len(unequal)} of {len(CASES)} cases differ\n\n" + "\n\n".join(unequal)
    print(f"{len(CASES)} enumerated cases, all equal")


@pytest.mark.parametrize(
    ("case", "status"), BROKEN_AT_PREFECT, ids=[case.name for case, _ in BROKEN_AT_PREFECT]
)
async def test_where_prefect_breaks_we_answer(both: Both, flow_id: str, case: Case, status: int) -> None:
    answers = await both.answers(flow_id, case.body(flow_id), case.headers)
    assert answers.prefect[0] >= 500
    assert answers.ours[0] == status


async def test_what_is_too_much_for_prefect_is_stored_in_a_database_of_our_own(
    both: Both, flow_id: str
) -> None:
    """In its own database, Prefect could not show or move on such a run: see test_odd_runs.py."""
    for fields in ({"parameters": {"a": nested(300)}}, {"tags": tags(101)}, {"context": {"a": nested(300)}}):
        body = json.dumps({"flow_id": flow_id, **fields}).encode()
        answers = await both.answers(flow_id, body)
        assert answers.prefect[0] >= 500
        assert answers.ours[0] == (422 if both.share else 201)


async def test_state_data_comes_back(both: Both, flow_id: str) -> None:
    for data in ("text", {"a": [1]}, [1, 2], 1):
        body = json.dumps({"flow_id": flow_id, "state": {"type": "COMPLETED", "data": data}}).encode()
        assert (await both.producer.request(body)).body["state"]["data"] == data


async def test_duplicates(both: Both, flow_id: str) -> None:
    """The same body again, another body with the same key, and the same key for another flow."""
    other_flow = await both.flow()
    key = uuid4().hex
    for fields in (
        {"flow_id": flow_id, "name": "first", "parameters": {"a": 1}},
        {"flow_id": flow_id, "name": "first", "parameters": {"a": 1}},
        {"flow_id": flow_id, "name": "second", "state": {"type": "RUNNING"}, "tags": ["x"]},
        {"flow_id": other_flow, "name": "third"},
    ):
        body = json.dumps({**fields, "idempotency_key": key}).encode()
        assert_equal(await both.answers(str(fields["flow_id"]), body), body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text("abc_.é", max_size=5), children, max_size=3),
    max_leaves=8,
)  # fmt: skip
objects = st.dictionaries(st.text("abcxyz", max_size=4), json_values, max_size=3)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
times = st.datetimes().map(lambda time: time.isoformat() + "Z") | texts
details = st.fixed_dictionaries(
    {},
    optional={
        "scheduled_time": times,
        "cache_key": texts,
        "pause_reschedule": st.booleans(),
        "retriable": st.booleans(),
    },
)
states = st.fixed_dictionaries(
    {"type": st.sampled_from(STATES)},
    optional={"name": texts, "message": texts | st.none(), "state_details": details},
)
policies = st.fixed_dictionaries(
    {},
    optional={
        "retries": st.integers(0, 9) | st.none(),
        "retry_delay": st.integers(0, 99),
        "max_retries": st.integers(0, 9),
        "retry_delay_seconds": st.floats(0, 9),
        "resuming": st.booleans(),
        "pause_keys": st.lists(texts, max_size=3),
    },
)
label_values = (
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts
)
bodies = st.fixed_dictionaries(
    {"flow_id": st.just(FLOW)},
    optional={
        "state": states,
        "name": texts,
        "flow_version": texts | st.none(),
        "parameters": objects,
        "context": objects,
        "empirical_policy": policies,
        "tags": st.lists(texts, max_size=3),
        "labels": st.dictionaries(texts, label_values, max_size=3),
        "work_queue_name": texts,
        "job_variables": objects | st.none(),
        "keyed": st.just(True),
    },
)  # fmt: skip
fields = st.sampled_from(
    [
        "state",
        "name",
        "flow_id",
        "flow_version",
        "parameters",
        "context",
        "tags",
        "labels",
        "job_variables",
        "deployment_id",
        "new",
    ]
)
mutations = st.lists(st.tuples(fields, json_values | states), max_size=2)


@settings(
    max_examples=GENERATED,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(body=bodies, mutation=mutations)
async def test_generated_cases(
    both: Both, flow_id: str, body: dict[str, Any], mutation: list[tuple[str, Any]]
) -> None:
    """Random valid bodies, some with one or two fields replaced by random values."""
    request = {**body, **dict(mutation)}
    if request.pop("keyed", False):
        request["idempotency_key"] = uuid4().hex
    raw = json.dumps(request).replace(FLOW, flow_id).encode()
    answers = await both.answers(flow_id, raw)
    if answers.prefect[0] >= 500:
        assert answers.ours[0] < 500
        both.broken += 1
        assert both.broken <= GENERATED // 5, "Prefect breaks at so many that little is compared"
        return
    assert_equal(answers, raw)


async def test_a_field_that_only_one_of_them_has_shows(both: Both, flow_id: str) -> None:
    """The suite relies on this: one field more or less in either answer is a difference."""
    body = json.dumps({"flow_id": flow_id}).encode()
    answers = await both.answers(flow_id, body)
    assert_equal(answers, body)
    for name in answers.ours[1]:
        without = {field: value for field, value in answers.ours[1].items() if field != name}
        assert list(differences(answers.prefect[1], without)) == [
            f".{name}: only Prefect has it: {answers.prefect[1][name]!r}"
        ]
        assert list(differences(without, answers.ours[1])) == [
            f".{name}: only we have it: {answers.ours[1][name]!r}"
        ]


async def test_a_run_of_our_own_is_read_as_prefect_reads_its_own(both: Both, flow_id: str) -> None:
    """The same request makes a run on each side, which is then read there."""
    read = 0
    for case in CASES:
        if both.share or not case.name.startswith(("every", "state ", "labels", "parameters")):
            continue
        body = written_for(flow_id, case.raw, FLOW)
        json_ = {"content-type": "application/json", **case.headers}
        try:
            prefects = await both.http.post("/flow_runs/", content=body, headers=json_)
        except httpx.TransportError:
            continue
        ours = await both.producer.request(body, headers=case.headers)
        if prefects.status_code != 201 or ours.status != 201:
            continue
        theirs = (await both.http.get(f"/flow_runs/{prefects.json()['id']}")).json()
        reply = await both.producer.request({"id": ours.body["id"]}, type="read_flow_run")
        assert reply.status == 200
        now = datetime.now(UTC)
        found = list(differences(comparable(theirs, now), comparable(reply.body, now)))
        assert not found, f"{case.name}\n" + "\n".join(found)
        read += 1
    assert both.share or read > 20
