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


async def tidy(url: str, *, checkpoint: bool = True) -> None:
    """Remove what a measurement left to vacuum, so that the next one does not pay for it.

    A checkpoint lets PostgreSQL use its files of the write-ahead log again, as it does on any database that has run for a
    while. A new one fills each with zeros first (16 MB, some ten thousand runs), and all commits wait for that.
    """
    await execute(url, "VACUUM ANALYZE flow_run", "VACUUM ANALYZE flow_run_state", *(["CHECKPOINT"] if checkpoint else []))
