"""The client's errors: the worker refuses a request, or the broker refuses it or brings no reply.
All can be pickled, as Celery and multiprocessing pickle errors.
"""

from typing import Any

from ..contract.record import FlowRunRecord

NOT_SENT = "It was not sent."
MAYBE_SENT = "It may have been sent, and may still be served."


class ClientError(Exception):
    """Base of all errors of the client.

    Attributes:
        maybe_sent: False if the broker certainly does not have the request: then it can safely be
            sent again. True if it may have been served, or may still be. Then only a request with
            an idempotency key can safely be sent again.
        record: the run that was made, or that was waited for, as it was known last. Otherwise None.
    """

    maybe_sent = False
    record: FlowRunRecord | None = None

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class _NotAnswered(ClientError):
    """An error of sending. Its text says whether the request may have been sent."""

    def __str__(self) -> str:
        return f"{super().__str__()} {MAYBE_SENT if self.maybe_sent else NOT_SENT}"


class InvalidURL(ClientError, ValueError):
    """The URL is wrong. The text does not show it: it may have a password."""


class FlowRunRefused(ClientError):
    """The worker refused the request. It is in the dead-letter queue with the reason. Or the client
    found it wrong before it was sent: then ``maybe_sent`` is False, and there is no dead letter.

    Attributes:
        status: the HTTP status that Prefect answers (400 to 422).
        body: the error body, with ``detail``, or for 422 a list of errors in ``exception_detail``.
        reason: the reason in one line, as in the dead letter. None from an older worker.
    """

    maybe_sent = True

    def __init__(self, status: int, body: dict[str, Any], reason: str | None = None) -> None:
        super().__init__(status, body, reason)
        self.status, self.body, self.reason = status, body, reason

    def __str__(self) -> str:
        lines = [f"{'.'.join(map(str, each.get('loc', ())))}: {each.get('msg')}" for each in self.errors]
        told = f"{self.status}: {self.reason or '; '.join(lines) or self.body.get('detail', self.body)}"
        return told if self.maybe_sent else f"{told}. {NOT_SENT}"

    @property
    def errors(self) -> list[dict[str, Any]]:
        """For a 422: the errors, each with ``loc``, ``msg`` and ``type``."""
        errors = self.body.get("exception_detail")
        return errors if isinstance(errors, list) else []


class InvalidFlowRun(FlowRunRefused):
    """422: the endpoint does not accept the request. See :attr:`errors`."""


class Conflict(FlowRunRefused):
    """409: a row that the request refers to, such as its flow, does not exist, or the parameters
    don't fit the deployment's schema.
    """


class NotFound(FlowRunRefused):
    """404: the deployment, work pool or work queue does not exist."""


class UnreadableReply(ClientError):
    """The reply can't be read. The run may exist.

    Attributes:
        status: the reply's status, or None.
        body: its raw body.
    """

    maybe_sent = True

    def __init__(self, message: str, status: int | None, body: bytes) -> None:
        super().__init__(message, status, body)
        self.status, self.body = status, body


class NoReply(ClientError):
    """No reply came in time. The request is at the broker and may still be served. Asking again is
    safe with the same idempotency key. Without one it makes a second run.

    Attributes:
        message_id: the request's ``message_id``, as in logs and dead letters.
    """

    maybe_sent = True

    def __init__(self, message: str, message_id: str) -> None:
        super().__init__(message, message_id)
        self.message_id = message_id


class NotConfirmed(NoReply):
    """The broker has not confirmed the message in time: it may have it or not. Sending it again is
    as safe as after :class:`NoReply`. The text has the progress, and any alarm of the broker.
    """


class WaitTimedOut(ClientError):
    """The run has not ended in time. It goes on. Its last known record is in :attr:`record`."""


class StatesNotTold(ClientError):
    """No worker publishes states of runs, so no end can be waited for: ``WORKER_STATES`` is off."""


class NotRoutable(_NotAnswered):
    """There is no request queue of that name: has a worker declared it?"""


class NotTaken(_NotAnswered):
    """The broker kept refusing the message: the queue is full, or has no majority."""


class BrokerGone(_NotAnswered):
    """The broker can't be reached or refuses the login, or the client was closed. After a lost
    connection the request may have been sent: see ``maybe_sent``.
    """


class AccessRefused(_NotAnswered):
    """The user lacks a permission at the broker. The client needs a channel, and write permission
    on the default exchange (``amq.default``). Some brokers demand read permission on
    ``amq.rabbitmq.reply-to`` for replies. The text has the broker's words.
    """


class MessageRefused(_NotAnswered):
    """The broker refuses this request, mostly because its body or its headers are too large. The
    text has the broker's words.
    """


class NotSerializable(ClientError, ValueError):
    """The request can't be written as JSON, or its headers as AMQP. Nothing was sent."""
