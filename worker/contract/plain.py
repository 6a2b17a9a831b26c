"""Plain messages: programs that know nothing of Prefect wrote them. Each asks for a run of one
deployment. Knows no broker.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UnsupportedMediaType, ValidationRefused
from .kinds import is_kind
from .message import Message

# CloudEvents in binary mode: prefixes of their attributes, as headers. JMS allows no colon.
# (CloudEvents' binding for AMQP, section 3.1.3.1.)
_EVENT_PREFIXES = ("cloudEvents:", "cloudEvents_")
# In structured mode, and in batches, the body is the whole event.
_EVENT_IN_BODY = re.compile(r"\s*application/cloudevents(-batch)?\+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PlainMessages:
    """How to read a queue's plain messages.

    Attributes:
        deployment: to run, as ``FLOW NAME/DEPLOYMENT NAME``.
        parameter: the body is the value of this parameter. None: its fields are the parameters.
        replies: replies are sent. Otherwise ``reply_to`` belongs to another protocol.
    """

    deployment: str
    parameter: str | None = None
    replies: bool = False

    def have(self, message: Message) -> bool:
        """Whether this is a plain message: its type is that of no request."""
        return not is_kind(message.type)

    def check(self, message: Message) -> None:
        """Raise UnsupportedMediaType for a CloudEvent that is the body."""
        if message.content_type and _EVENT_IN_BODY.match(message.content_type):
            raise UnsupportedMediaType(
                f"The content type '{message.content_type}' is not supported: "
                "send CloudEvents in binary mode."
            )

    def request(self, content: Any, *, empty: bool) -> dict[str, Any]:
        """The body of the request that a plain message stands for.

        Args:
            content: its own body, parsed.
            empty: it has none.

        Raises:
            ValidationRefused: its own body can't be the parameters.
        """
        if empty:
            raise _refused("missing", "The message has no body: send JSON", content)
        if self.parameter is not None:
            content = {self.parameter: content}
        elif not isinstance(content, dict):
            raise _refused(
                "dict_type",
                f"Input should be an object with the parameters of the deployment '{self.deployment}' "
                "(with WORKER_DEPLOYMENT_PARAMETER it may be any JSON)",
                content,
            )
        return {"deployment_name": self.deployment, "parameters": content}


def is_event(headers: Mapping[str, Any]) -> bool:
    """Whether these are headers of a CloudEvent in binary mode, with its source and its id."""
    return any(headers.get(f"{each}source") and headers.get(f"{each}id") for each in _EVENT_PREFIXES)


def _refused(kind: str, reason: str, content: Any) -> ValidationRefused:
    error = {"type": kind, "loc": ["body"], "msg": reason, "input": content}
    return ValidationRefused([error], content)
