"""Replies: those waited for, and how to read one."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from aiormq.abc import DeliveredMessage
from pydantic import ValidationError

from ..contract.message import ERROR_HEADER
from ..contract.record import FlowRunRecord
from .errors import Conflict, FlowRunRefused, InvalidFlowRun, NotFound, UnreadableReply

_REFUSALS = {404: NotFound, 409: Conflict, 422: InvalidFlowRun}


@dataclass(frozen=True, slots=True)
class Reply:
    """A worker's reply: the headers ``status`` (None unless it is an integer) and ``x-error``, and
    the raw body.
    """

    status: int | None
    reason: str | None
    body: bytes

    def record(self) -> FlowRunRecord:
        """The flow run record.

        Raises:
            FlowRunRefused: the reply is a refusal.
            UnreadableReply: the reply is neither a record nor a refusal.
        """
        try:
            if self.status is None:
                raise ValueError("it has no status")
            if self.status < 400:
                return record_of(self.body)
            error = json.loads(self.body)
            if not isinstance(error, dict):
                raise ValueError("its body is no object")
        except (ValueError, RecursionError) as wrong:
            told = f"The reply with the status {self.status} can't be read: {wrong}"
            raise UnreadableReply(told, self.status, self.body) from wrong
        raise refused(self.status, error, self.reason)


class PendingReplies:
    """The replies that are waited for on one connection, by correlation id."""

    def __init__(self) -> None:
        self._futures: dict[str, asyncio.Future[Reply]] = {}

    def expect(self, correlation_id: str) -> "asyncio.Future[Reply]":
        """The future of a reply. Cancel it to stop waiting."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self._futures.pop(correlation_id, None))
        self._futures[correlation_id] = future
        return future

    async def on_message(self, message: DeliveredMessage) -> None:
        """Consume a reply. A late reply is dropped."""
        properties = message.header.properties
        future = self._futures.get(properties.correlation_id or "")
        if future is not None and not future.done():
            headers = properties.headers or {}
            status, reason = headers.get("status"), headers.get(ERROR_HEADER)
            future.set_result(
                Reply(
                    status if isinstance(status, int) else None,
                    reason if isinstance(reason, str) else None,
                    message.body,
                )
            )

    def fail(self, error: Exception) -> None:
        """End all waits with an error."""
        for future in self._futures.values():
            if not future.done():
                future.set_exception(error)
                future.exception()  # or asyncio warns of a future without a waiter


def refused(status: int, body: dict[str, Any], reason: str | None) -> FlowRunRefused:
    """The error for a refusal."""
    return _REFUSALS.get(status, FlowRunRefused)(status, body, reason)


def record_of(body: bytes) -> FlowRunRecord:
    """The record in a message. Raises ValueError or RecursionError if it can't be read."""
    try:
        return FlowRunRecord.model_validate_json(body)
    except ValidationError:  # pydantic's parser allows 200 levels, the worker 500
        return FlowRunRecord.model_validate(json.loads(body))
