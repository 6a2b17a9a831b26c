"""An open store on an empty database of either kind, and a cluster that a test may change."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.postgresql import PostgreSQL
from worker.store import Store


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    store = await Store.open(database_url, migrate=True)
    yield store
    await store.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgreSQL]:
    """A cluster whose settings and roles a test may change."""
    with PostgreSQL() as cluster:
        yield cluster


@pytest.fixture
def url(cluster: PostgreSQL) -> str:
    return cluster.create_database()
