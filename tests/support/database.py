"""Reads and changes a database of either kind with its own driver."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
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


async def execute(url: str, *statements: str) -> None:
    """Run statements on PostgreSQL, even if it is set to read-only."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        await connection.execute("SET default_transaction_read_only = off")
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def alter_system(url: str, change: str) -> None:
    """``ALTER SYSTEM`` of PostgreSQL; returns once all its sessions know the change."""
    loaded = await fetch(url, "SELECT pg_conf_load_time()")
    local = "SET synchronous_commit = local"
    await execute(url, local, f"ALTER SYSTEM {change}", "SELECT pg_reload_conf()")
    async with asyncio.timeout(60):
        while await fetch(url, "SELECT pg_conf_load_time()") == loaded:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def locked(url: str) -> AsyncIterator[None]:
    """Block all writers meanwhile; on PostgreSQL runs can still be read."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.partition(":///")[2], isolation_level=None)) as file:
            file.execute("BEGIN IMMEDIATE")
            yield
        return
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE flow_run IN SHARE MODE")
            yield
    finally:
        await connection.close()
