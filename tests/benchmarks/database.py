"""What the benchmarks do to a database besides measuring on it."""

import asyncpg


async def tidy(url: str, *, checkpoint: bool = True) -> None:
    """Remove what a measurement left to vacuum, so that the next one does not pay for it.

    A checkpoint lets PostgreSQL use its files of the write-ahead log again, as it does on any
    database that has run for a while. A new one fills each with zeros first (16 MB, some 8,000
    runs), and all commits wait for that.
    """
    connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=60)
    try:
        for table in ("flow_run", "flow_run_state"):
            await connection.execute(f"VACUUM ANALYZE {table}", timeout=3600)
        if checkpoint:
            await connection.execute("CHECKPOINT", timeout=3600)
    finally:
        await connection.close()
