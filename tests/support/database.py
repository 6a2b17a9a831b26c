"""Looks into a database of either kind, by its own driver."""

import sqlite3
from typing import Any

import asyncpg


async def fetch(url: str, query: str) -> list[dict[str, Any]]:
    """The rows of a query."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.partition(":///")[2], timeout=10)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(query)]
        finally:
            connection.close()
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return [dict(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def fetch_runs(url: str) -> list[dict[str, Any]]:
    """All flow runs."""
    return await fetch(url, "SELECT * FROM flow_run ORDER BY created")
