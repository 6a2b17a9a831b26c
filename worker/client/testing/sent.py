"""The requests that a fake got, for a test to look at."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...contract.record import FlowRunRecord
from ..errors import ClientError
from ..message import ClientMessage


@dataclass(slots=True)
class SentRequest:
    """A request, as it was sent.

    Attributes:
        body: JSON.
        fields: the body's fields, as JSON values: a UUID is a text. Empty if it is no object.
        type: the kind of request, such as ``create_flow_run_from_deployment``.
        headers: AMQP headers.
        message_id: its ``message_id``.
        reply: whether a reply was wanted.
        timeout: seconds of the call.
        expires: seconds until it expires, or None.
        status: 201 created, 200 existing, 4xx refused, 0 no answer: it was not served, or its
            reply was lost.
        record: the run that it made or found, as it was then.
        error: the error that the caller got. For a refused request without a reply, the error
            that a reply would have been.
    """

    body: bytes = field(repr=False)
    type: str
    headers: Mapping[str, Any]
    message_id: str
    reply: bool
    timeout: float
    expires: float | None
    status: int = 0
    record: FlowRunRecord | None = field(default=None, repr=False)
    error: ClientError | None = None
    fields: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        try:
            fields = json.loads(self.body)
        except (ValueError, RecursionError):
            fields = None
        self.fields = fields if isinstance(fields, dict) else {}

    @property
    def flow_id(self) -> str | None:
        """The flow's id in the request."""
        return self.fields.get("flow_id")

    @property
    def deployment(self) -> str | None:
        """The deployment's name in the request, or its id."""
        return self.fields.get("deployment_name") or self.fields.get("deployment_id")

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters in the request."""
        return self.fields.get("parameters") or {}

    @property
    def idempotency_key(self) -> str | None:
        """The idempotency key in the request."""
        return self.fields.get("idempotency_key")


def sent_request(message: ClientMessage, timeout: float, expires: float | None) -> SentRequest:
    """The record of a message for the test."""
    properties = message.properties
    return SentRequest(
        message.body,
        str(properties.message_type),
        dict(properties.headers or {}),
        str(properties.message_id),
        bool(properties.reply_to),
        timeout,
        expires,
    )
