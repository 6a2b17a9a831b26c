"""A column that is newer than the database: without it the run has its default, and with it the
column is written and read.
"""

import sqlite3
from contextlib import closing

from tests.support.database import execute, fetch_runs
from tests.support.newer_column import ADD, COLUMN, newer_worker


async def test_a_newer_column_is_used_where_the_database_has_it(database_url: str) -> None:
    without = await newer_worker(database_url)
    assert without == {"lacks": [f"flow_run.{COLUMN}"], "shown": "usual"}
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.partition(":///")[2])) as file:
            file.execute(ADD)
    else:
        await execute(database_url, ADD)
    assert await newer_worker(database_url) == {"lacks": [], "shown": "one"}
    assert [run[COLUMN] for run in await fetch_runs(database_url)] == [None, None, "one", "two"]
