"""In place of the real sender: gives messages to a fake's world."""

import asyncio
import math

from ..message import ClientMessage
from ..reconnector import Reached
from ..replies import Reply
from ..sender import Sender
from .world import World


class FakeSender(Sender):
    """Sends messages to a world. It never connects."""

    def __init__(self, world: World, queue: str) -> None:
        super().__init__("", queue, Reached())
        self._world = world

    async def send(
        self, message: ClientMessage, seconds: float | None, expires: float | None = None
    ) -> Reply | None:
        """See :meth:`Sender.send`."""
        await asyncio.sleep(0)  # other tasks run meanwhile, as while a message is sent
        return self._world.serve(message, math.inf if seconds is None else seconds, expires)
