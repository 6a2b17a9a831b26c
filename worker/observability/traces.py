"""Continues the producer's trace, by OpenTelemetry's semantic conventions for RabbitMQ.

Off, and free, unless the extra ``otel`` is installed and ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or
``…_TRACES_ENDPOINT``) is set. Sampler, headers and resource are set by OpenTelemetry's own
variables.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import structlog

from worker import __version__
from worker.amqp.frames import read_short_string
from worker.contract.delivery import Delivery
from worker.urls.broker import Server

log = structlog.get_logger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Traces:
    """The spans of requests. This class records none.

    A request's span lasts from its delivery to its acknowledgement, even if it is refused.
    """

    def connected(self, server: Server) -> None:
        """Name the server in all further spans."""

    def taken(self, delivery: Delivery) -> str | None:
        """Begin a delivery's span. Returns its W3C ``traceparent``, for the new run's state."""
        return None

    def of(self, delivery: Delivery) -> str | None:
        """The ``traceparent`` of a delivery's span."""
        return None

    @contextmanager
    def batch(self, deliveries: Sequence[Delivery]) -> Iterator[None]:
        """Record a batch's transaction as a span, linked to the requests' spans."""
        yield

    def replied(self, delivery: Delivery) -> str | None:
        """Begin the span of a delivery's reply. Returns its ``traceparent``."""
        return None

    def settled(self, delivery: Delivery, status: int, run_id: UUID | None) -> None:
        """End the spans of a delivery and its reply."""

    def lost(self) -> None:
        """End all open spans: the session is over, and its requests are delivered again."""

    def close(self) -> None:
        """Send the spans not sent yet."""


class _OpenTelemetry(Traces):
    def __init__(self, provider: Any, queue: str) -> None:
        from opentelemetry import propagate, trace

        self._trace = trace
        self._propagate = propagate
        self._provider = provider
        self._tracer = provider.get_tracer("flow-run-worker", __version__)
        self._queue = queue
        self._server: dict[str, Any] = {}
        self._requests: dict[int, Any] = {}
        self._replies: dict[int, Any] = {}

    def connected(self, server: Server) -> None:
        self._server = {"server.address": server.host, "server.port": server.port}

    def taken(self, delivery: Delivery) -> str | None:
        message = delivery.message
        carrier = {
            name: value
            for name in ("traceparent", "tracestate")
            if isinstance(value := message.headers.get(name), str)
        }
        attributes = {
            **self._attributes("process", *self._route(delivery)),
            "messaging.message.body.size": delivery.size,
            "messaging.rabbitmq.message.delivery_tag": delivery.tag,
        }
        if message.message_id:
            attributes["messaging.message.id"] = message.message_id
        if message.correlation_id:
            attributes["messaging.message.conversation_id"] = message.correlation_id
        span = self._tracer.start_span(
            f"process {self._queue}",
            context=self._propagate.extract(carrier),
            kind=self._trace.SpanKind.CONSUMER,
            attributes=attributes,
        )
        self._requests[delivery.tag] = span
        return self._traceparent(span)

    def of(self, delivery: Delivery) -> str | None:
        span = self._requests.get(delivery.tag)
        return None if span is None else self._traceparent(span)

    def _traceparent(self, span: Any) -> str | None:
        injected: dict[str, str] = {}
        self._propagate.inject(injected, self._trace.set_span_in_context(span))
        return injected.get("traceparent")

    @contextmanager
    def batch(self, deliveries: Sequence[Delivery]) -> Iterator[None]:
        spans = (self._requests.get(delivery.tag) for delivery in deliveries)
        links = [self._trace.Link(span.get_span_context()) for span in spans if span is not None]
        with self._tracer.start_as_current_span(
            "create flow runs", links=links, attributes={"messaging.batch.message_count": len(deliveries)}
        ):
            yield

    def replied(self, delivery: Delivery) -> str | None:
        request = self._requests.get(delivery.tag)
        if request is None:
            return None
        reply_to = delivery.message.reply_to or ""
        attributes = self._attributes("send", reply_to, reply_to)
        if delivery.message.correlation_id:
            attributes["messaging.message.conversation_id"] = delivery.message.correlation_id
        self._replies[delivery.tag] = reply = self._tracer.start_span(
            "send reply",
            context=self._trace.set_span_in_context(request),
            kind=self._trace.SpanKind.PRODUCER,
            attributes=attributes,
        )
        return self._traceparent(reply)

    def settled(self, delivery: Delivery, status: int, run_id: UUID | None) -> None:
        if reply := self._replies.pop(delivery.tag, None):
            reply.end()
        if request := self._requests.pop(delivery.tag, None):
            request.set_attribute("flow_run_worker.status", status)
            if run_id is not None:
                request.set_attribute("prefect.run.id", str(run_id))
            if status >= 400:
                request.set_attribute("error.type", str(status))
                request.set_status(self._trace.StatusCode.ERROR)
            request.end()

    def lost(self) -> None:
        for spans in (self._replies, self._requests):
            for span in spans.values():
                span.set_attribute("error.type", "session_lost")
                span.set_status(self._trace.StatusCode.ERROR)
                span.end()
            spans.clear()

    def close(self) -> None:
        self._provider.shutdown()

    def _route(self, delivery: Delivery) -> tuple[str, str]:
        """A consumer's destination, as these conventions want it, and the routing key."""
        exchange = read_short_string(delivery.route, 0)
        key = read_short_string(delivery.route, 1 + delivery.route[0])
        queue = "" if key == self._queue else self._queue
        return ":".join(filter(None, (exchange, key, queue))), key

    def _attributes(self, operation: str, destination: str, key: str) -> dict[str, Any]:
        attributes = {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": destination,
            **self._server,
        }
        if key:
            attributes["messaging.rabbitmq.destination.routing_key"] = key
        return attributes


def open_traces(queue: str) -> Traces:
    """Traces as OpenTelemetry's environment variables say."""
    if (
        not any(os.environ.get(name) for name in _ENDPOINTS)
        or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    ):
        return Traces()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning(
            "traces_off",
            reason="an OTLP endpoint is set, and the extra is missing: pip install flow-run-worker[otel]",
        )
        return Traces()
    named = {
        "service.name": os.environ.get("OTEL_SERVICE_NAME", "flow-run-worker"),
        "service.version": __version__,
    }
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return _OpenTelemetry(provider, queue)
