"""Content types of bodies, and numbers that are not finite: Prefect's behaviour, and our
differences.
"""

import json

import httpx
import pytest

from tests.conformance.conftest import Both

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON ; charset=UTF-8",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        'application/json; profile="x"; version=1',
        "application/vnd.orders+json",
        "application/cloudevents+json; charset=utf-8",
        "text/json",
        "text/plain",
        "application/jsonl",
        "application/json-seq",
        "application/json/json",
        "application/x-gzip",
    ],
)
async def test_what_prefect_reads_as_json_we_read(both: Both, flow_id: str, content_type: str) -> None:
    """Where Prefect answers 422 for a body that is no object, we answer 415."""
    body = json.dumps({"flow_id": flow_id, "name": "ü"}, ensure_ascii=False).encode()
    theirs = await both.http.post("/flow_runs/", content=body, headers={"content-type": content_type})
    ours = await both.producer.request(body, content_type=content_type)
    assert ours.status == {422: 415}.get(theirs.status_code, theirs.status_code)
    if theirs.status_code == 201:
        assert ours.body["name"] == theirs.json()["name"] == "ü"


async def test_a_label_that_is_no_number_is_taken_by_prefect_and_refused_by_us(
    both: Both, flow_id: str
) -> None:
    """Prefect stores null, which it can't read again: each list with the run answers 500."""
    body = b'{"flow_id": "%s", "labels": {"a": NaN}}' % flow_id.encode()
    theirs = await both.http.post("/flow_runs/", content=body, headers=JSON)
    assert theirs.status_code == 201
    run_id = theirs.json()["id"]
    try:
        listed = await both.http.post("/flow_runs/filter", json={"flow_runs": {"id": {"any_": [run_id]}}})
    finally:  # Delete it before another list reads it; the 500 closes the connection.
        async with httpx.AsyncClient(base_url=both.http.base_url) as http:
            assert (await http.delete(f"/flow_runs/{run_id}")).is_success
    assert listed.status_code == 500
    assert (await both.producer.request(body)).status == 422


async def test_a_large_number_under_a_key_is_the_same_in_another_notation(both: Both) -> None:
    """Prefect reads the run back from JSONB, which writes no exponents. We don't."""
    flow_id = await both.flow()
    body = b'{"flow_id": "%s", "idempotency_key": "k", "parameters": {"a": 1e22}}' % flow_id.encode()
    shown = []
    for _ in range(2):
        theirs = await both.http.post("/flow_runs/", content=body, headers=JSON)
        shown.append(theirs.json()["parameters"]["a"])
    assert [type(each) for each in shown] == [int, int]
    # In a shared database, that key would be taken.
    created = await both.producer.request(body.replace(flow_id.encode(), (await both.flow()).encode()))
    assert type(created.body["parameters"]["a"]) is float
    assert created.body["parameters"]["a"] == shown[0] == 10**22
