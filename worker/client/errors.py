"""What can go wrong for a producer: the worker refuses the request, or the broker does not take it
or bring a reply.
"""

from typing import Any


class ClientError(Exception):
    """Base of all errors of the client."""


class FlowRunRefused(ClientError):
    """The worker refused the request; it lies in the dead-letter queue with the reason.

    Attributes:
        status: the HTTP status that Prefect answers (400 to 422).
        body: the error body; ``detail``, or for 422 ``exception_detail`` with a list of errors.
    """

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        self.status = status
        self.body = body
        super().__init__(f"{status}: {self._reason()}")

    @property
    def errors(self) -> list[dict[str, Any]]:
        """For a 422: what is wrong, each with ``loc``, ``msg`` and ``type``."""
        errors = self.body.get("exception_detail")
        return errors if isinstance(errors, list) else []

    def _reason(self) -> str:
        lines = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in self.errors]
        return "; ".join(lines) or str(self.body.get("detail", self.body))

    @staticmethod
    def from_reply(status: int, body: dict[str, Any]) -> "FlowRunRefused":
        """The error class for a status."""
        return _BY_STATUS.get(status, FlowRunRefused)(status, body)


class InvalidFlowRun(FlowRunRefused):
    """422: the request is not what the endpoint takes; see :attr:`errors`."""


class Conflict(FlowRunRefused):
    """409: a row that the request refers to (its flow, say) does not exist."""


class NotFound(FlowRunRefused):
    """404: no work pool or work queue of that name."""


class NoReply(ClientError):
    """No reply came in time. The request is at the broker and may still be served: asking again is
    safe with the same idempotency key, and makes a second run without one.
    """


class NotRoutable(ClientError):
    """There is no request queue of that name: has a worker declared it?"""


class NotTaken(ClientError):
    """The broker refused the message until the time was up: the queue is full, or has no majority."""


class BrokerGone(ClientError):
    """No broker could be reached in time, or it refuses the login; or the client was closed."""


class AccessRefused(ClientError):
    """The broker does not let this user do it: the client needs write on the default exchange
    (``amq.default``), a channel, and, for replies, on some brokers read on
    ``amq.rabbitmq.reply-to``. The message has the broker's words.
    """


class MessageRefused(ClientError):
    """The broker refuses this message, and no other: its body or its headers are too large, say.
    The message has its words.
    """


class NotSerializable(ClientError, ValueError):
    """The request, or its headers, can't be written as JSON and AMQP; nothing was sent."""


_BY_STATUS = {404: NotFound, 409: Conflict, 422: InvalidFlowRun}
