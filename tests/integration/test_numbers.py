"""Numbers on their way into a database and back."""

import re

import pytest

from tests.conftest import StartWorker
from tests.support.producer import Producer

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


@pytest.mark.parametrize("sent", ["1e22", "1e16", "123456789012345678901234567890", "1.5", "1e-7", "100.0"])
async def test_a_number_is_the_same_in_the_reply_to_a_duplicate(
    start_worker: StartWorker, producer: Producer, database_url: str, sent: str
) -> None:
    """Equal to the last digit, although PostgreSQL's JSONB drops the exponent of large ones."""
    start_worker(database_url)
    body = f'{{"flow_id": "{FLOW_ID}", "idempotency_key": "k", "parameters": {{"a": {sent}}}}}'.encode()
    created, existing = await producer.request(body), await producer.request(body)
    assert (created.status, existing.status) == (201, 200)
    numbers = [re.search(rb'"parameters":\{"a":([^}]+)\}', each.raw) for each in (created, existing)]
    first, again = (float(found[1]) for found in numbers if found)
    assert first == again == float(sent)


async def test_nan_in_parameters_is_null_in_the_database_and_in_both_replies(
    start_worker: StartWorker, producer: Producer, database_url: str
) -> None:
    """As in Prefect. In labels it is refused before it reaches the database."""
    start_worker(database_url)
    fields = b'"idempotency_key": "k", "parameters": {"a": [NaN, 1e400, -Infinity, 1]}'
    body = b'{"flow_id": "%s", %s}' % (FLOW_ID.encode(), fields)
    replies = [await producer.request(body), await producer.request(body)]
    assert [each.status for each in replies] == [201, 200]
    assert [each.body["parameters"] for each in replies] == [{"a": [None, None, None, 1]}] * 2

    refused = await producer.request(b'{"flow_id": "%s", "labels": {"a": NaN}}' % FLOW_ID.encode())
    assert refused.status == 422
    (letter,) = await producer.dead_letters(1)
    assert letter.headers["x-error"] == "body.labels.a: Input should be a finite number"
