"""Producers and commands name a memory alarm of the broker within seconds."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import aio_pika
import pytest

from tests.faults.faults import WATERMARK
from tests.support.command import Done, command
from tests.support.rabbitmq import RabbitMQ
from worker.broker.topology import Topology
from worker.client import FlowRunClient, NoReply, NotConfirmed
from worker.client.sync import FlowRunClient as SyncClient

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
LOW = "low on memory"


@pytest.fixture
async def alarmed(broker: RabbitMQ, queue: str) -> AsyncIterator[str]:
    """The URL of a broker that accepts no publications, with the queues and two dead letters."""
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        await Topology(queue).declare(channel)
        for number in range(2):
            letter = aio_pika.Message(b'{"flow_id": %d}' % number, delivery_mode=2)
            await channel.default_exchange.publish(letter, f"{queue}.dead")
    await asyncio.to_thread(broker.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        yield broker.url
    finally:
        await asyncio.to_thread(broker.ctl, "set_vm_memory_high_watermark", "absolute", WATERMARK)


async def test_clients_speak_of_the_confirm_and_name_the_alarm(alarmed: str, queue: str) -> None:
    request = {"flow_id": FLOW_ID}
    async with FlowRunClient(alarmed, queue=queue, timeout=3) as client:
        with pytest.raises(NotConfirmed, match=rf"No confirm .*{LOW}.*connection\.blocked") as published:
            await client.publish(request)
        assert "worker running" not in str(published.value)
        with pytest.raises(NotConfirmed, match=LOW):
            await client.create_flow_run(FLOW_ID)
        (outcome,) = [each async for each in client.create_many([request])]
        assert isinstance(outcome.error, NotConfirmed)
    assert isinstance(published.value, NoReply)  # code that caught this one still does

    def blocking() -> None:
        with SyncClient(alarmed, queue=queue, timeout=3) as client, pytest.raises(NotConfirmed, match=LOW):
            client.publish(request)

    await asyncio.to_thread(blocking)


async def test_doctor_says_within_seconds_that_the_broker_takes_nothing(
    alarmed: str, queue: str, sqlite_url: str
) -> None:
    started = time.monotonic()
    done = await command("doctor", "--json", amqp_url=alarmed, queue=queue, database_url=sqlite_url)
    print(f"doctor took {time.monotonic() - started:.1f} s")
    (alarm,) = [each for each in json.loads(done.out) if each["what"] == "alarm"]
    assert (done.code, alarm["verdict"]) == (1, "problem")
    assert LOW in alarm["detail"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "--flow-id", FLOW_ID, "--timeout", "3"],
        ["create", "--flow-id", FLOW_ID, "--no-reply", "--timeout", "3"],
        ["dead-letters", "replay", "--all"],
        ["bench", "--requests", "100"],
        ["bench", "--requests", "100", "--concurrency", "10"],
    ],
    ids=" ".join,
)
async def test_commands_that_publish_name_it(alarmed: str, queue: str, arguments: list[str]) -> None:
    started = time.monotonic()
    done = await command(*arguments, amqp_url=alarmed, queue=queue)
    print(f"{arguments[0]} took {time.monotonic() - started:.1f} s")
    assert done.code == 1
    assert LOW in done.err
    assert "Traceback" not in done.err


async def test_commands_that_publish_nothing_are_not_held_up(
    alarmed: str, queue: str, broker: RabbitMQ
) -> None:
    """Letters that could not be sent again return at once."""

    async def run(*arguments: str) -> Done:
        return await command(*arguments, amqp_url=alarmed, queue=queue)

    assert (await run("dead-letters", "replay", "--all")).code == 1
    listed = await run("dead-letters", "list", "--letters", "--json")
    assert len(listed.out.splitlines()) == 2
    assert (await run("topology", "declare")).code == 0
    assert "2 thrown away." in (await run("dead-letters", "purge", "--all", "--yes")).out
