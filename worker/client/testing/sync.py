"""The blocking fake: the real blocking client on a fake transport."""

from functools import partial

from ..client import DEFAULT_QUEUE, DEFAULT_TIMEOUT
from ..sync import FlowRunClient
from .client import URL, ServedClient
from .controls import Controls


class FakeFlowRunClient(Controls, FlowRunClient):
    """The blocking form of :class:`worker.client.testing.FakeFlowRunClient`. Like the real client
    it has a thread: close it, or use it in a ``with`` statement.
    """

    def __init__(
        self, url: str = URL, *, queue: str = DEFAULT_QUEUE, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        Controls.__init__(self)
        self._client = partial(ServedClient, self._world)
        FlowRunClient.__init__(self, url, queue=queue, timeout=timeout)
