"""Large steps of several tasks in one event loop."""

import asyncio

from worker.tasks.pace import Pace


async def test_two_large_steps_never_share_a_turn_of_the_loop() -> None:
    pace, turns, steps = Pace(), 0, list[int]()

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def take_steps() -> None:
        for _ in range(3):
            await pace.turn()
            steps.append(turns)

    counting = asyncio.create_task(count_turns())
    await asyncio.gather(*(take_steps() for _ in range(3)))
    counting.cancel()
    assert len(steps) == len(set(steps)) == 9


async def test_a_task_that_gave_up_waiting_blocks_no_other() -> None:
    pace = Pace()
    await pace.turn()
    waiting = asyncio.create_task(pace.turn())
    await asyncio.sleep(0)
    waiting.cancel()
    async with asyncio.timeout(10):
        await pace.turn()
