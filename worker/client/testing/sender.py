"""In place of the real sender: gives messages to a fake's world, and waits for states there."""

import asyncio
import math
from collections.abc import AsyncGenerator

from ...contract.record import FlowRunRecord
from ..message import ClientMessage
from ..reconnector import Reached
from ..replies import Reply
from ..sender import Sender
from ..waits import Waiting, Waits, has_ended
from .world import World


class FakeSender(Sender):
    """Sends messages to a world. It never connects."""

    def __init__(self, world: World, queue: str) -> None:
        super().__init__("", queue, Reached())
        self._world = world
        self._waits = FakeWaits(world)

    async def send(
        self, message: ClientMessage, seconds: float | None, expires: float | None = None
    ) -> Reply | None:
        """See :meth:`Sender.send`."""
        await asyncio.sleep(0)  # other tasks run meanwhile, as while a message is sent
        return self._world.serve(message, math.inf if seconds is None else seconds, expires)

    async def states(self, key: str) -> AsyncGenerator[FlowRunRecord, None]:
        """See :meth:`Sender.states`."""
        self._world.check_states_told()
        with self._world.told.followed(key) as told:
            while True:
                yield await told.get()


class FakeWaits(Waits):
    """Waits for states that a world tells."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def ready(self) -> None:
        """See :meth:`Waits.ready`."""
        self._world.check_states_told()

    async def wait(self, waiting: Waiting) -> FlowRunRecord:
        """See :meth:`Waits.wait`."""
        await self.ready()
        with self._world.told.followed(f"*.*.*.{waiting.run_id}") as told:
            record = self._world.read(waiting.run_id)
            waiting.see_read(record)
            self._world.fail_wait()
            while not has_ended(record):
                record = await told.get()
                waiting.see_read(record)
            return record
