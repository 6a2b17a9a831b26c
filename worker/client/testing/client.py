"""The asynchronous fake: the real client on a fake transport."""

from ..client import DEFAULT_QUEUE, DEFAULT_TIMEOUT, FlowRunClient
from ..sender import Transport
from .controls import Controls

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

    def _sender(self) -> Transport:
        self._running_loop()
        return self._transport


class ServedClient(FlowRunClient):
    """A client whose requests go to the fake of another client."""

    def __init__(self, transport: Transport, url: str, *, queue: str, timeout: float) -> None:
        super().__init__(url, queue=queue, timeout=timeout)
        self._transport = transport

    def _sender(self) -> Transport:
        self._running_loop()
        return self._transport
