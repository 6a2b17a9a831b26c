"""Explains why the broker refuses a declaration, with advice. Knows no names of ours."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelClosed,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionClosed,
)

from worker.broker.connection import BrokerUnavailable

# RabbitMQ's texts, seen on 3.10 and 4.0. The limits of whole clusters come with 4.1, and with
# RabbitMQ as a service.
_UNKNOWN = re.compile("invalid arg |invalid property |unknown exchange type ")
_LIMIT = re.compile(r"\b(?:queue|exchange|binding)s? limit (?:in|of) ")
_CODE = re.compile("[A-Z_]+ - ")


class TopologyMismatch(Exception):
    """Something can't be declared at the broker; the message says why, and what to do."""


class NothingThere(BrokerUnavailable):
    """The broker has nothing of this name. It may have vanished a moment ago."""


@contextmanager
def declaring(what: str) -> Iterator[None]:
    """Explain the broker's errors while something is declared or looked at.

    Args:
        what: such as ``queue 'flow-runs.create'``.

    Raises:
        NothingThere: it is missing, or the other end of its binding is.
        TopologyMismatch: it exists with other properties, or can't be declared.
        BrokerUnavailable: it can't be declared or looked at for the moment.
        ChannelAccessRefused: the user lacks the permission. Passed on: there may be another way.
    """
    try:
        yield
    except ChannelAccessRefused:
        raise
    except ChannelNotFoundEntity as error:
        reason = _reason(error)
        if re.match("no (queue|exchange|binding) ", reason):
            raise NothingThere(reason) from error
        # Such as "home node … is down or inaccessible": the queue and its messages still exist.
        raise BrokerUnavailable(f"The {what} can't be used for the moment: {reason}") from error
    except ChannelLockedResource as error:
        raise TopologyMismatch(
            f"Another connection has the {what} for itself: {_reason(error)} "
            "End that program, or choose another name with WORKER_QUEUE."
        ) from error
    except ChannelPreconditionFailed as error:
        raise TopologyMismatch(_refused(what, _reason(error))) from error
    except ChannelClosed as error:
        raise TopologyMismatch(f"The broker does not declare the {what}: {error}.") from error
    except ConnectionClosed as error:
        raise BrokerUnavailable(
            f"The broker closed the connection as the {what} was declared: {error}"
        ) from error


def _refused(what: str, reason: str) -> str:
    if reason.startswith("inequivalent arg "):
        return (
            f"The {what} stands at the broker with other properties than the worker declares: {reason}. "
            "Delete it there (after emptying it), or choose another name with WORKER_QUEUE."
        )
    if _UNKNOWN.match(reason):
        return (
            f"The broker does not know an argument of the {what}: {reason}. "
            "Nothing was declared. The worker needs quorum queues, of RabbitMQ 3.10 or newer."
        )
    if _LIMIT.search(reason):
        return (
            f"The broker has no room for the {what}: {reason}. Nothing was declared. Raise the limit (of a "
            "virtual host: rabbitmqctl set_vhost_limits), or delete unused ones."
        )
    return f"The broker does not declare the {what}: {reason}."


def _reason(error: ChannelClosed) -> str:
    return _CODE.sub("", str(error), count=1)
