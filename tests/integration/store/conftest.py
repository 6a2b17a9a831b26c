"""An open store on an empty database, of either kind in turn."""

from collections.abc import AsyncIterator

import pytest

from worker.store import Store


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    store = await Store.open(database_url, migrate=True)
    yield store
    await store.close()
