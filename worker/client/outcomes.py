"""The outcomes of requests that were sent together."""

from dataclasses import dataclass

from ..contract.record import FlowRunRecord
from .errors import ClientError
from .message import Request


@dataclass(frozen=True, slots=True)
class CreateOutcome:
    """The outcome of one request.

    Attributes:
        index: the request's place in the iterable, from 0.
        status: 201 created, 200 existing, 4xx refused, 0 no answer.
        record: the flow run, unless there is an error.
        error: the reason why there is no record.
        request: the request itself.
    """

    index: int
    status: int
    record: FlowRunRecord | None = None
    error: ClientError | None = None
    request: Request | None = None

    @property
    def run(self) -> FlowRunRecord:
        """The record of an outcome without an error."""
        assert self.record is not None
        return self.record

    @property
    def created(self) -> bool:
        """Whether this request made the run.

        A request may reach a worker twice, for example after a lost connection. The second answer
        is 200 with the run of the first one. Without an idempotency key no other request can have
        made that run: this is True. With a key another request may have made it: this is False.
        """
        return self.status == 201 or (self.record is not None and not self.record.idempotency_key)


@dataclass(frozen=True, slots=True)
class PublishOutcome:
    """The outcome of one publication.

    Attributes:
        index: the request's place in the iterable, from 0.
        message_id: its ``message_id``, once the broker has confirmed it; else None.
        error: the reason why it was not confirmed.
        request: the request itself.
    """

    index: int
    message_id: str | None = None
    error: ClientError | None = None
    request: Request | None = None
