"""Checks a request before it is sent, by the rules of the worker. It knows no database, so it can't
tell whether the flow exists.
"""

import sys

from ..contract.decode import decode
from ..contract.errors import Refusal
from ..contract.kinds import KINDS
from ..contract.message import Message
from .message import ClientMessage
from .replies import refused

_TYPES = frozenset(kind.type for kind in KINDS)


def check(message: ClientMessage) -> None:
    """Check a message. A type that this client does not know is not checked, nor is the size: each
    worker has its own limits.

    Raises:
        FlowRunRefused: the error that the worker would reply.
    """
    properties = message.properties
    if properties.message_type not in _TYPES:
        return
    sent = Message(
        message.body,
        properties.headers or {},
        content_type=properties.content_type,
        type=properties.message_type,
    )
    try:
        decode(sent, max_body_bytes=sys.maxsize, max_parameter_size=0)
    except Refusal as refusal:
        error = refused(refusal.status, refusal.body, refusal.line)
        error.maybe_sent = False
        raise error from None
