"""A request's trace, from its producer to the reply, as an OTLP collector receives it."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from yarl import URL

from tests.conftest import StartWorker
from tests.support.processes import free_ports
from tests.support.producer import Producer

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Receives spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()

    async def export(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            }
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    collector = Collector()
    app = web.Application()
    app.add_routes([web.post("/v1/traces", collector.export)])
    runner = web.AppRunner(app)
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield collector, f"http://127.0.0.1:{port}"
    await runner.cleanup()


async def test_a_producers_trace_goes_on_to_the_reply(
    start_worker: StartWorker,
    producer: Producer,
    amqp_url: str,
    sqlite_url: str,
    collector: tuple[Collector, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received, endpoint = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    worker = start_worker(sqlite_url)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    created = await producer.publish({"flow_id": FLOW_ID}, headers=headers, message_id="m-1")
    refused = await producer.publish({"flow_id": 1}, headers=headers)
    replies = await producer.replies_to([created, refused])
    assert [reply.status for reply in replies] == [201, 422]
    (letter,) = await producer.dead_letters(1)
    name, _, key = producer.queue.rpartition(".")
    exchange = await producer.channel.get_exchange(name)
    body = b'{"flow_id": "%s"}' % FLOW_ID.encode()
    request = aio_pika.Message(body, message_id="m-2", reply_to=producer.reply_to, correlation_id="m-2")
    await exchange.publish(request, key)
    await producer.replies_to(["m-2"])
    # The worker sends the remaining spans when it leaves.
    worker.process.terminate()
    assert await asyncio.to_thread(worker.process.wait, 30) == 0
    assert received.services == {"flow-run-worker"}
    processed = received.named(f"process {producer.queue}")
    by_status = {
        attributes(span)["flow_run_worker.status"]: span
        for span in processed
        if attributes(span).get("messaging.message.id") != "m-2"
    }
    process = by_status[201]
    assert process.trace_id.hex() == TRACE
    assert process.parent_span_id.hex() == PARENT
    server = {"server.address": URL(amqp_url).host, "server.port": URL(amqp_url).port}
    assert (
        attributes(process).items()
        >= {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": producer.queue,
            "messaging.rabbitmq.destination.routing_key": producer.queue,
            **server,
            "messaging.message.id": "m-1",
            "messaging.message.conversation_id": created,
            "prefect.run.id": replies[0].body["id"],
        }.items()
    )
    assert by_status[422].status.code == 2
    replied = {span.parent_span_id: span for span in received.named("send reply")}
    assert replied[process.span_id].trace_id.hex() == TRACE
    assert (
        attributes(replied[process.span_id]).items()
        >= {
            "messaging.operation.type": "send",
            "messaging.destination.name": producer.reply_to,
            "messaging.rabbitmq.destination.routing_key": producer.reply_to,
            **server,
        }.items()
    )
    # A reply's consumer goes on with the trace, and a letter leads to the span that refused it.
    for span, reply in ((process, replies[0]), (by_status[422], replies[1])):
        assert reply.headers["traceparent"] == f"00-{TRACE}-{replied[span.span_id].span_id.hex()}-01"
    assert letter.headers["x-error-traceparent"] == f"00-{TRACE}-{by_status[422].span_id.hex()}-01"
    assert letter.headers["traceparent"] == headers["traceparent"]
    (by_exchange,) = [span for span in processed if attributes(span).get("messaging.message.id") == "m-2"]
    assert (
        attributes(by_exchange).items()
        >= {
            "messaging.destination.name": f"{name}:{key}:{producer.queue}",
            "messaging.rabbitmq.destination.routing_key": key,
        }.items()
    )
    linked = {link.span_id for span in received.named("create flow runs") for link in span.links}
    assert linked == {process.span_id, by_exchange.span_id}
    # The run's first state carries the trace of its request.
    assert (
        replies[0].body["state"]["state_details"]["traceparent"] == f"00-{TRACE}-{process.span_id.hex()}-01"
    )


async def test_the_producers_trace_is_kept_without_a_collector(
    start_worker: StartWorker, producer: Producer, database_url: str
) -> None:
    start_worker(database_url)
    refused = await producer.request({"flow_id": 1}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    (letter,) = await producer.dead_letters(1)
    assert {"traceparent", "x-error-traceparent"} & (refused.headers | letter.headers).keys() == {
        "traceparent"  # the letter's, as the producer sent it
    }
    own = "00-11111111111111111111111111111111-2222222222222222-01"
    for header, body, kept in (
        (f"00-{TRACE}-{PARENT}-01", {}, f"00-{TRACE}-{PARENT}-01"),
        (
            f"00-{TRACE}-{PARENT}-01",
            {"state": {"type": "PENDING", "state_details": {"traceparent": own}}},
            own,
        ),
        ("no trace", {}, None),
        (f"00-{'0' * 32}-{PARENT}-01", {}, None),
    ):
        reply = await producer.request({"flow_id": FLOW_ID, **body}, headers={"traceparent": header})
        assert reply.status == 201
        assert reply.body["state"]["state_details"]["traceparent"] == kept
