"""The errors for the broker's answers to a declaration. ``tests/integration/test_topology.py`` has
those of a real broker; these are of other versions and limits.
"""

import pytest
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionInternalError,
)

from worker.broker.connection import BrokerUnavailable
from worker.broker.declaring import TopologyMismatch, declaring


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("cannot declare queue 'q': queue limit in cluster (10000) is reached", "Raise the limit"),
        ("cannot declare exchange 'x' in vhost '/': exchange limit of 10 is reached", "Raise the limit"),
        ("cannot declare queue 'q': queue limit in vhost 'a' (3) is reached", "Raise the limit"),
        (
            "invalid arg 'x-queue-type' for queue 'q' in vhost '/': \"unsupported queue type 'quorum'\"",
            "RabbitMQ 3.10 or newer",
        ),
        ("invalid arg 'x-delivery-limit' for queue 'q' in vhost '/': negative", "RabbitMQ 3.10 or newer"),
        ("inequivalent arg 'x-max-length' for queue 'queue limit in x' in vhost '/'", "Delete it there"),
        ("something that no version says yet", "something that no version says yet."),
    ],
)
def test_a_refused_declaration_has_its_own_remedy(said: str, remedy: str) -> None:
    with pytest.raises(TopologyMismatch) as told, declaring("queue 'q'"):
        raise ChannelPreconditionFailed(f"PRECONDITION_FAILED - {said}")
    assert said in str(told.value)
    assert remedy in str(told.value)
    assert ("Delete it there" in str(told.value)) == said.startswith("inequivalent")


@pytest.mark.parametrize(
    "error",
    [
        ChannelNotFoundEntity(
            "NOT_FOUND - home node 'rabbit@b' of durable queue 'q' is down or inaccessible"
        ),
        ChannelNotFoundEntity("NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor"),
        ConnectionInternalError("INTERNAL_ERROR - Cannot declare a queue 'q' on node 'rabbit@b'"),
    ],
)
def test_what_may_pass_is_waited_out(error: Exception) -> None:
    """Nothing has to be deleted: the queue exists, with its messages."""
    with pytest.raises(BrokerUnavailable, match="queue 'q'"), declaring("queue 'q'"):
        raise error


def test_a_missing_right_is_not_explained_here() -> None:
    with pytest.raises(ChannelAccessRefused), declaring("queue 'q'"):
        raise ChannelAccessRefused("ACCESS_REFUSED - configure access to queue 'q'")


def test_any_other_end_of_the_channel_is_told_in_the_brokers_words() -> None:
    with pytest.raises(TopologyMismatch, match="RESOURCE_ERROR"), declaring("queue 'q'"):
        raise ChannelClosed(506, "RESOURCE_ERROR - no file descriptors")
