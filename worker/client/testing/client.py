"""The asynchronous fake: the real client with the sender of a fake."""

from ..client import DEFAULT_QUEUE, DEFAULT_TIMEOUT, FlowRunClient
from ..sender import Sender
from .controls import Controls
from .sender import FakeSender
from .world import World

URL = "amqp://fake/"


class FakeFlowRunClient(Controls, FlowRunClient):
    """A client for tests, with the real client's methods, checks and errors, and the worker's
    answers. Nothing is sent anywhere.

    Runs, deployments and requests belong to this object. It needs no closing, but a closed one
    raises :class:`worker.client.BrokerGone`, like the real client.

    Args:
        url, queue, timeout: as of the real client. Nothing waits for the timeout.
    """

    def __init__(
        self, url: str = URL, *, queue: str = DEFAULT_QUEUE, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        Controls.__init__(self)
        FlowRunClient.__init__(self, url, queue=queue, timeout=timeout)

    def _new_sender(self) -> Sender:
        return FakeSender(self._world, self._queue)


class ServedClient(FlowRunClient):
    """A client whose requests go to the world of another client."""

    def __init__(self, world: World, url: str, *, queue: str, timeout: float) -> None:
        super().__init__(url, queue=queue, timeout=timeout)
        self._world = world

    def _new_sender(self) -> Sender:
        return FakeSender(self._world, self._queue)
