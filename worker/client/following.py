"""Follows the states of a binding, each once, with a queue of its own at the broker."""

import asyncio
import logging
from collections.abc import AsyncGenerator

from ..broker.connection import ChannelLost
from ..contract.record import FlowRunRecord
from ..contract.topology import MAX_ROUTING_KEY
from ..tasks.backoff import Backoff
from .recent import Recent
from .reconnector import LONGEST_PAUSE, Reconnector
from .states_queue import StatesQueue, Told

log = logging.getLogger(__name__)

# States that are held here. The broker holds the others until these are taken.
PREFETCH = 64


async def follow(reconnector: Reconnector, exchange: str, key: str) -> AsyncGenerator[FlowRunRecord, None]:
    """Yield the states of a binding as they are published. After a lost connection it goes on with
    those that are published then.

    Args:
        key: the binding's key, such as ``FAILED.#``.

    Raises:
        StatesNotTold: no worker publishes states.
        ClientError: there is no connection, or a right is missing.
        ValueError: the key is too long.
    """
    if len(key.encode()) > MAX_ROUTING_KEY:
        raise ValueError(f"A binding has at most {MAX_ROUTING_KEY} bytes")
    given, losses = Recent(), Backoff(longest=LONGEST_PAUSE)
    while True:
        arrived: asyncio.Queue[Told | None] = asyncio.Queue()

        def end(arrived: asyncio.Queue[Told | None] = arrived) -> None:
            arrived.put_nowait(None)

        try:
            queue = await StatesQueue.open(
                await reconnector.connection(),
                exchange,
                arrived.put_nowait,
                end,
                key=key,
                prefetch=PREFETCH,
            )
        except ChannelLost:
            await losses.sleep()
            continue
        losses.reset()
        try:
            taken = 0
            while (told := await arrived.get()) is not None:
                taken += 1
                if taken % (PREFETCH // 2) == 0:
                    await queue.took(told)
                if given.add(told.id) and (record := _record(told)) is not None:
                    yield record
        except ChannelLost:
            pass
        finally:
            await queue.close()
        await losses.sleep()


def _record(told: Told) -> FlowRunRecord | None:
    try:
        return told.record()
    except (ValueError, RecursionError) as wrong:
        log.warning("The state %s of the run %s can't be read: %s", told.id, told.run_id, wrong)
        return None
