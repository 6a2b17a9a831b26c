"""Ends a task that was asked to stop, whether it does so by itself or not."""

import asyncio


async def end(task: "asyncio.Task[None]", seconds: float) -> None:
    """Wait for a task's end; cancel it after this many seconds, and wait as long again."""
    await asyncio.wait((task,), timeout=seconds)
    task.cancel()
    await asyncio.wait((task,), timeout=seconds)
