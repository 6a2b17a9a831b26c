"""Which parts of a message identify it, and which don't."""

from datetime import UTC, datetime
from decimal import Decimal
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


DAY = datetime(2030, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("sent", "pinned"),
    [
        (Message(b"", {}), "b9afee65-2923-89e5-81c2-3c1e934de8ac"),
        (Message(b"", {}, message_id="a"), "1f9dfa2c-0644-86c1-88a3-e3fa694ef044"),
        (Message(b'{"a":1}', {}, message_id="a"), "eb2e1c35-b112-8719-8470-178c98f381f8"),
        (
            Message(b'{"a":1}', {"x": 1}, content_type="application/json"),
            "6abd9f56-41ed-81b6-9d05-b2952393499b",
        ),
        (
            Message(b"x", {"a": None, "b": True, "c": 2, "d": 2.5, "e": b"raw"}),
            "d703d2f8-d7bf-8a53-8e0d-01bb8201d667",
        ),
        (
            Message(b"x", {"a": None, "b": True, "c": 2, "d": 2.5, "e": bytearray(b"raw")}),
            "d703d2f8-d7bf-8a53-8e0d-01bb8201d667",
        ),
        (
            Message(b"x", {"a": Decimal("1.5"), "b": DAY, "c": -(2**40)}),
            "44404416-9ad6-8107-84f2-e4502ccb641a",
        ),
        (
            Message(b"x", {"a": {"b": [1, "two", {"c": None}], "a": {}}, "l": []}),
            "01c1c4e2-3fb9-822a-ba39-b41d47011865",
        ),
        (Message(b"x", {"l": [1, "two"], "a": {"l": [[]]}}), "bbdcae26-7889-8dc1-a15c-05246a273d1f"),
        (Message(b"x", {"\udcff": "\udcff"}), "e18f2324-aadf-89bc-8b4c-c8d7ff5ab759"),
        (Message("ü€𝄞".encode(), {"ü": "€𝄞"}), "cc9e08a6-de0b-8d04-8e05-56f350105274"),
        (
            Message(b"x", {}, priority=9, delivery_mode=1, timestamp=DAY),
            "15941cd8-05e9-8baa-a23c-4e7f1414c666",
        ),
        (Message(b"x", {}, priority=0, delivery_mode=2), "d6b6e570-89d3-82c8-afa9-ea9cf2e1f4f0"),
        (
            Message(b"x", {}, reply_to="amq.rabbitmq.reply-to.g1h2", correlation_id="c"),
            "d8179124-ea92-8101-a927-acc5aea11a44",
        ),
        (
            Message(b"x", {}, reply_to="replies", type="create_flow_run", app_id="app"),
            "02960000-2aa4-8f16-be53-b5f48abb2a7b",
        ),
        (
            Message(b"x", {}, user_id="u", expiration="5", content_encoding="utf-8"),
            "ce047c0d-b469-8e8d-a7de-9685e214b09d",
        ),
        (
            Message(b"x", {"traceparent": "1", "x-death": [{}]}, message_id="m"),
            "eed21b0d-431a-8ab5-99f5-780954aef0ee",
        ),
        (Message(b"x", {"timestamp_in_ms": 5}, timestamp=DAY), "f258e6c0-8327-8225-bc16-4abab15a39f4"),
        (Message(b"x" * 100_000, {"h": "y" * 100_000}), "b9a1514c-c358-8f2f-9110-a224c5c66cb3"),
        (
            Message(b"x", {"a": "", "b": b"", "c": [], "d": {}, "e": [None]}),
            "0e879cf7-1997-86ab-bcba-6e34784a80ee",
        ),
    ],
)
def test_values_stay_the_same(sent: Message, pinned: str) -> None:
    """They are the ids of stored runs."""
    assert str(fingerprint(sent)) == pinned
