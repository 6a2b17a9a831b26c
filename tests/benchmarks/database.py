"""What the benchmarks do to a database besides measuring on it."""

import asyncpg


async def execute(url: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own, however long they take."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=60)
    try:
        for statement in statements:
            await connection.execute(statement, timeout=3600)
    finally:
        await connection.close()


async def tidy(url: str) -> None:
    """Remove what a measurement left to vacuum, so that the next one does not pay for it."""
    await execute(url, "VACUUM ANALYZE flow_run", "VACUUM ANALYZE flow_run_state")
