"""Prepares a database for the next measurement."""

import asyncpg


async def tidy(url: str, *, checkpoint: bool = True) -> None:
    """Vacuum after a measurement, so that the next one does not pay for it.

    A checkpoint lets PostgreSQL reuse its write-ahead log files, as it does on any database that
    has run for a while. A new file is first filled with zeros (16 MB, some 8,000 runs), and all
    commits wait for that.
    """
    connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=60)
    try:
        for table in ("flow_run", "flow_run_state"):
            await connection.execute(f"VACUUM ANALYZE {table}", timeout=3600)
        if checkpoint:
            await connection.execute("CHECKPOINT", timeout=3600)
    finally:
        await connection.close()
