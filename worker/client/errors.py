"""What can go wrong for a producer: the worker refuses the request, or the broker does not take it
or bring a reply. All can be pickled, since Celery and multiprocessing pickle what a task raises.
"""

from typing import Any


class ClientError(Exception):
    """Base of all errors of the client."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class InvalidURL(ClientError, ValueError):
    """No broker can have this URL. The text does not show it, as it may hold a password."""


class FlowRunRefused(ClientError):
    """The worker refused the request; it lies in the dead-letter queue with the reason.

    Attributes:
        status: the HTTP status that Prefect answers (400 to 422).
        body: the error body; ``detail``, or for 422 ``exception_detail`` with a list of errors.
        reason: what is wrong in one line, as in the dead letter; None from an older worker.
    """

    def __init__(self, status: int, body: dict[str, Any], reason: str | None = None) -> None:
        super().__init__(status, body, reason)
        self.status, self.body, self.reason = status, body, reason

    def __str__(self) -> str:
        lines = [f"{'.'.join(map(str, each.get('loc', ())))}: {each.get('msg')}" for each in self.errors]
        return f"{self.status}: {self.reason or '; '.join(lines) or self.body.get('detail', self.body)}"

    @property
    def errors(self) -> list[dict[str, Any]]:
        """For a 422: what is wrong, each with ``loc``, ``msg`` and ``type``."""
        errors = self.body.get("exception_detail")
        return errors if isinstance(errors, list) else []


class InvalidFlowRun(FlowRunRefused):
    """422: the request is not what the endpoint takes; see :attr:`errors`."""


class Conflict(FlowRunRefused):
    """409: a row that the request refers to (its flow, say) does not exist; or parameters do not
    fit the deployment's schema.
    """


class NotFound(FlowRunRefused):
    """404: no such deployment, or no work pool or work queue of that name."""


class UnreadableReply(ClientError):
    """There is a reply, but it can't be read; the run may exist.

    Attributes:
        status: the reply's status, or None.
        body: its body, as it came.
    """

    def __init__(self, message: str, status: int | None, body: bytes) -> None:
        super().__init__(message, status, body)
        self.status, self.body = status, body


class NoReply(ClientError):
    """No reply came in time. The request is at the broker and may still be served: asking again is
    safe with the same idempotency key, and makes a second run without one.

    Attributes:
        message_id: the request's, by which logs and dead letters show it.
    """

    def __init__(self, message: str, message_id: str) -> None:
        super().__init__(message, message_id)
        self.message_id = message_id


class NotConfirmed(NoReply):
    """The broker has not confirmed the message in time: it may have it, or not. Sending it again is
    as safe as after :class:`NoReply`. The text says how far it came, and names an alarm of the
    broker.
    """


class NotRoutable(ClientError):
    """There is no request queue of that name: has a worker declared it?"""


class NotTaken(ClientError):
    """The broker refused the message again and again: the queue is full, or has no majority."""


class BrokerGone(ClientError):
    """No broker could be reached in time, or it refuses the login; or the client was closed."""


class AccessRefused(ClientError):
    """The broker does not let this user do it: the client needs write on the default exchange
    (``amq.default``), a channel, and, for replies, on some brokers read on
    ``amq.rabbitmq.reply-to``. The text has the broker's words.
    """


class MessageRefused(ClientError):
    """The broker refuses this one request, mostly since its body or its headers are too large. The
    text has the broker's words.
    """


class NotSerializable(ClientError, ValueError):
    """The request, or its headers, can't be written as JSON and AMQP; nothing was sent."""
