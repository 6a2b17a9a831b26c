"""Checks a request before it is sent, by the rules of the worker. It knows no database, so it can't
tell whether the flow exists.
"""

import sys

import aio_pika

from ..contract.decode import decode
from ..contract.errors import Refusal
from ..contract.kinds import KINDS
from ..contract.message import Message
from .replies import refused

_TYPES = frozenset(kind.type for kind in KINDS)


def check(message: aio_pika.Message) -> None:
    """Check a message. A type that this client does not know is not checked, nor is the size: each
    worker has its own limits.

    Raises:
        FlowRunRefused: the error that the worker would reply.
    """
    if message.type not in _TYPES:
        return
    sent = Message(message.body, message.headers, content_type=message.content_type, type=message.type)
    try:
        decode(sent, max_body_bytes=sys.maxsize, max_parameter_size=0)
    except Refusal as refusal:
        error = refused(refusal.status, refusal.body, refusal.line)
        error.maybe_sent = False
        raise error from None
