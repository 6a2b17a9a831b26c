"""What the broker says against a declaration, and what to do about it; knows no names of ours."""

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

# RabbitMQ's texts, seen on 3.10 and 4.0; the limits of clusters are those of 4.1 and of hosts of
# RabbitMQ.
_UNKNOWN = re.compile("invalid arg |invalid property |unknown exchange type ")
_LIMIT = re.compile(r"\b(?:queue|exchange|binding)s? limit (?:in|of) ")
_CODE = re.compile("[A-Z_]+ - ")


class TopologyMismatch(Exception):
    """Something can't be declared at the broker; the message says why, and what to do."""


class NothingThere(BrokerUnavailable):
    """Nothing of this name stands at the broker; it may have vanished a moment ago."""


@contextmanager
def declaring(what: str) -> Iterator[None]:
    """Explain what the broker says as something is declared, or looked at.

    Args:
        what: such as ``queue 'flow-runs.create'``.

    Raises:
        NothingThere: it, or what it is bound to, does not stand.
        TopologyMismatch: it stands otherwise, or can't be declared.
        BrokerUnavailable: it can't be declared or looked at for the moment.
        ChannelAccessRefused: the user may not do this; as it is, since there may be another way.
    """
    try:
        yield
    except ChannelAccessRefused:
        raise
    except ChannelNotFoundEntity as error:
        reason = _reason(error)
        if re.match("no (queue|exchange|binding) ", reason):
            raise NothingThere(reason) from error
        # Such as "home node … is down or inaccessible": it is there, and so are its messages.
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
            f"The broker does not know what the worker declares the {what} with: {reason}. "
            "Nothing was declared. The worker needs quorum queues, of RabbitMQ 3.10 or newer."
        )
    if _LIMIT.search(reason):
        return (
            f"The broker has no room for the {what}: {reason}. Nothing was declared. Raise the limit (of a "
            "virtual host: rabbitmqctl set_vhost_limits), or delete what nobody needs any more."
        )
    return f"The broker does not declare the {what}: {reason}."


def _reason(error: ChannelClosed) -> str:
    return _CODE.sub("", str(error), count=1)
