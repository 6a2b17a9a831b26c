"""Ends a task that was asked to stop. It is cancelled if it does not end."""

import asyncio


async def end(task: "asyncio.Task[None]", seconds: float) -> None:
    """Wait for a task's end. Cancel it after this many seconds, and wait for its end again."""
    await asyncio.wait((task,), timeout=seconds)
    task.cancel()
    await asyncio.wait((task,), timeout=seconds)
