"""Which parts of a message identify it, and which don't."""

from datetime import UTC, datetime
from typing import Any

import pytest

from worker.contract.message import Message, fingerprint, is_own_header

WHEN = datetime(2030, 1, 2, tzinfo=UTC)

# Written by one hop or one send; another writes another value.
WRITTEN_ANEW: dict[str, Any] = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "a=1",
    "baggage": "sentry-trace_id=1",
    "Correlation-Context": "a=1",
    "Request-Id": "|1.2.",
    "b3": "1-2-1",
    "X-B3-TraceId": "1",
    "X-B3-Sampled": "1",
    "sentry-trace": "1-2-1",
    "uber-trace-id": "1:2:0:1",
    "uberctx-user": "1",
    "x-datadog-trace-id": "1",
    "x-datadog-tags": "_dd.p.dm=-1",
    "dd-pathway-ctx-base64": "AAAA",
    "X-Amzn-Trace-Id": "Root=1-2-3",
    "x-cloud-trace-context": "1/2;o=1",
    "elastic-apm-traceparent": "00-1-2-01",
    "newrelic": "eyJ2Ijp9",
    "NewRelicTransaction": "x",
    "X-INSTANA-T": "1",
    "sw8": "1-2-3",
    "dtdTraceTagInfo": "FW1;1",
    "singularityheader": "appId=1",
    "x-shovelled": [{"shovelled-by": "one", "src-uri": "amqp://one"}],
    "x-shovelled-timestamp": 1,
    "shovelled-by": "one",
    "shovel-name": "mine",
    "x-received-from": [{"uri": "amqp://one", "redelivered": False}],
    "x-routed-by": "rabbit@one",
    "x-stream-offset": 7,
    "x-opt-rabbitmq-received-time": 1,
    "timestamp_in_ms": 1,
    "spring_returned_message_correlation": "1",
    "spring_listener_return_correlation": "2",
    "x-exception-stacktrace": "at",
    "x-death": [{"count": 1}],
    "x-delivery-count": 2,
    "x-acquired-count": 2,
}
# The producer's own, though some look alike.
OWN = [
    "b3t", "trace", "request", "x-request-id", "correlation-id", "x-delay", "x-stream-filter-value",
    "x-deduplication-header", "x-prefect-api-version", "timestamp", "__TypeId__", "baggage-claim", "shovel",
]  # fmt: skip


def message(headers: dict[str, Any], **properties: Any) -> Message:
    return Message(b"{}", headers, message_id="1", **properties)


@pytest.mark.parametrize("name", WRITTEN_ANEW)
def test_what_a_hop_or_an_instrumentation_writes_is_no_part_of_it(name: str) -> None:
    bare = fingerprint(message({"mine": 1}))
    assert fingerprint(message({"mine": 1, name: WRITTEN_ANEW[name]})) == bare
    assert fingerprint(message({name: "another", "mine": 1})) == bare


def test_headers_that_come_first_on_the_way_are_no_part_of_it() -> None:
    assert fingerprint(message(WRITTEN_ANEW)) == fingerprint(message({}))


@pytest.mark.parametrize("name", OWN)
def test_a_header_of_the_producers_tells_two_messages_apart(name: str) -> None:
    assert len({fingerprint(message(headers)) for headers in ({}, {name: "1"}, {name: "2"})}) == 3


def test_a_timestamp_counts_where_the_producer_set_it_and_not_where_the_broker_did() -> None:
    """RabbitMQ's interceptor writes the property and the header ``timestamp_in_ms`` together."""
    assert fingerprint(message({}, timestamp=WHEN)) != fingerprint(message({}))
    at_the_broker = message({"timestamp_in_ms": 1_893_542_400_000}, timestamp=WHEN)
    assert fingerprint(at_the_broker) == fingerprint(message({}))


@pytest.mark.parametrize("name", ["traceparent", "baggage", "x-shovelled", "timestamp_in_ms"])
def test_a_message_that_is_sent_again_keeps_what_it_came_with(name: str) -> None:
    """A dead letter's producer finds its trace again."""
    assert is_own_header(name)


@pytest.mark.parametrize(
    "name", ["x-death", "x-delivery-count", "x-error", "x-opt-rabbitmq-received-time", "CC"]
)
def test_a_message_that_is_sent_again_begins_without_what_the_broker_added(name: str) -> None:
    assert not is_own_header(name)
