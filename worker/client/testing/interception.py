"""Lets a fake answer the real clients of this process, for a while."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from ..client import FlowRunClient
from ..sender import Sender
from .sender import FakeSender
from .world import World


@contextmanager
def intercepted(world: World) -> Iterator[None]:
    """Have all real clients, blocking ones too, make senders of a world. A client's own senders are
    put aside meanwhile, with their connections.
    """
    own: WeakKeyDictionary[FlowRunClient, dict[Any, Sender]] = WeakKeyDictionary()
    lock = threading.Lock()
    find, make = FlowRunClient._open_sender, FlowRunClient._new_sender

    def sender(client: FlowRunClient) -> Sender:
        with lock:
            if client not in own:
                own[client], client._senders = client._senders, {}
        return find(client)

    def new_sender(client: FlowRunClient) -> Sender:
        return FakeSender(world, client._queue)

    _set(sender, new_sender)
    try:
        yield
    finally:
        _set(find, make)
        for client, senders in own.items():
            client._senders = senders


def _set(sender: Any, new_sender: Any) -> None:
    FlowRunClient._open_sender = sender  # type: ignore[method-assign]
    FlowRunClient._new_sender = new_sender  # type: ignore[method-assign]
