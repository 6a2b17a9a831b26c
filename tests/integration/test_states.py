"""States that are told: each once at rest, and none is missing however it was committed."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.support.states import Follower, Writer, telling
from worker.settings import Settings
from worker.states.patience import Patience
from worker.store import Store

# States are settled after two seconds, and transactions forgotten after three.
HASTY = Patience(again=(0.5, 1.0, 1.5), late=2.0, forgotten=3.0, note=0.1, first=1.0, cursor=0.2, renewal=1.0)


@pytest.fixture
async def settings(amqp_url: str, queue: str, database_url: str) -> Settings:
    await (await Store.open(database_url, migrate=True)).close()
    return Settings(
        amqp_url=amqp_url, queue=queue, database_url=database_url, states="all", states_interval=0.05
    )


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[Writer]:
    async with Writer(settings.database_url) as writer:
        yield writer


@pytest.fixture
async def follower(settings: Settings) -> AsyncIterator[Follower]:
    async with Follower(settings.amqp_url, settings.queue) as follower:
        yield follower


async def begun(writer: Writer, follower: Follower) -> None:
    """Wait until states are told."""
    async with asyncio.timeout(120):
        while not follower.told:
            await writer.states(1, "RUNNING")
            await asyncio.sleep(0.2)
    await follower.has(writer.written[-1:])
    follower.told.clear()
    follower.messages.clear()
    writer.written.clear()


async def test_each_state_is_told_once(settings: Settings, writer: Writer, follower: Follower) -> None:
    async with telling(settings, HASTY):
        await begun(writer, follower)
        for count in (1, 1, 300, 1):
            await writer.states(count)
        await follower.has(writer.written)
        await asyncio.sleep(5)  # they are read again at each age
        await writer.states(1)
        await follower.has(writer.written)
    assert follower.told.keys() == set(writer.written)
    assert follower.doubles == 0


async def test_a_state_has_the_record_of_its_run(
    settings: Settings, writer: Writer, follower: Follower
) -> None:
    async with telling(settings, HASTY):
        await begun(writer, follower)
        run_id = await writer.run()
        first = await writer.states(1, "RUNNING", run_id=run_id)
        second = await writer.states(1, "COMPLETED", run_id=run_id)
        await follower.has(first + second)
    for message, state_id, type_ in zip(
        follower.messages, first + second, ("RUNNING", "COMPLETED"), strict=True
    ):
        body = json.loads(message.body)
        assert message.routing_key == f"{type_}.{body['flow_id']}.-.{run_id}"
        assert (body["id"], body["state_id"], body["state_type"]) == (str(run_id), str(state_id), type_)
        assert body["state"]["id"] == message.message_id == str(state_id)
        assert (message.type, message.content_type) == ("flow_run_state", "application/json")
        assert message.timestamp is not None
