"""``dead-letters`` with some undeliverable letters: all others are served."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from random import Random
from typing import Any

import aio_pika
import pytest

from tests.support.amqp10 import AMQP10Producer
from tests.support.command import Done, command
from tests.support.rabbitmq import RabbitMQ
from worker.broker.topology import Topology
from worker.operate.dead_letters import open_dead_letters

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
ODD = "odd"
# Its correlation id is a number.
UNDELIVERABLE = {"ulong": 42, "text": "{}"}


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    with RabbitMQ(plugins=["rabbitmq_amqp1_0"]) as node:
        yield node


@pytest.fixture(scope="module")
def sender(node: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> AMQP10Producer:
    return AMQP10Producer(tmp_path_factory.mktemp("sender"), node.port)


@pytest.fixture
def amqp_url(node: RabbitMQ) -> str:
    return node.url


@pytest.fixture
async def channel(amqp_url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(amqp_url) as connection:
        yield await connection.channel()


class Letters:
    """The dead letters of one queue; those named ``odd`` can't be delivered."""

    def __init__(
        self, node: RabbitMQ, queue: str, channel: aio_pika.abc.AbstractChannel, sender: AMQP10Producer
    ) -> None:
        self.queue = queue
        self._amqp_url = node.url
        self._sender = sender
        self._channel = channel

    async def fill(self, *names: str) -> None:
        await Topology(self.queue).declare(self._channel)
        for name in names:
            if name == ODD:
                await self._sender.send(f"{self.queue}.dead", [UNDELIVERABLE])
            else:
                body = json.dumps({"flow_id": FLOW_ID, "idempotency_key": name}).encode()
                message = aio_pika.Message(body, delivery_mode=2, headers={"x-error-status": 422})
                await self._channel.default_exchange.publish(message, f"{self.queue}.dead")

    async def run(self, *arguments: str, **more: Any) -> Done:
        return await command("dead-letters", *arguments, amqp_url=self._amqp_url, queue=self.queue, **more)

    async def listed(self, *arguments: str) -> tuple[list[dict[str, Any]], str]:
        """The letters shown, the oldest first, and the rest of the output."""
        done = await self.run("list", "--letters", "--json", *arguments)
        assert done.code == 0, done.err
        return [json.loads(line) for line in done.out.splitlines()][::-1], done.err

    async def keys(self) -> list[str]:
        return [each["idempotency_key"] for each in (await self.listed())[0]]

    async def depth(self, suffix: str = ".dead") -> int:
        queue = await self._channel.get_queue(self.queue + suffix)
        return queue.declaration_result.message_count or 0

    async def all_back(self, count: int) -> None:
        async with asyncio.timeout(120):
            while await self.depth() != count:
                await asyncio.sleep(0.05)


@pytest.fixture
def letters(
    node: RabbitMQ, queue: str, channel: aio_pika.abc.AbstractChannel, sender: AMQP10Producer
) -> Letters:
    return Letters(node, queue, channel, sender)


def told(said: str, *places: int) -> bool:
    """Whether exactly the letters at these places are reported as skipped."""
    return (
        [f"letter {place} " in said for place in places]
        == [True] * len(places)
        == ([True] * said.count("passed over"))
    )


async def test_all_others_are_listed_and_the_place_of_each_is_told_however_often_one_looks(
    letters: Letters,
) -> None:
    await letters.fill("a", "b", ODD, "c", ODD, ODD, "d")
    shown, said = await letters.listed()
    assert [each["idempotency_key"] for each in shown] == ["a", "b", "c", "d"]
    assert told(said, 3, 5, 6)
    for limit in ("2", "50"):
        await letters.all_back(7)
        shown, _ = await letters.listed("--limit", limit)
        assert len(shown) == min(int(limit), 4)
    await letters.all_back(7)
    shown, said = await letters.listed()
    assert sorted(each["idempotency_key"] for each in shown) == ["a", "b", "c", "d"]
    assert said.count("passed over") == 3


async def test_one_behind_them_is_shown_sent_again_and_thrown_away(letters: Letters) -> None:
    await letters.fill(ODD, ODD, "a", ODD, "b")
    ids = {each["idempotency_key"]: each["id"] for each in (await letters.listed())[0]}
    shown = await letters.run("show", ids["b"], "--json")
    assert json.loads(shown.out)["body"]["idempotency_key"] == "b"
    done = await letters.run("replay", ids["b"])
    assert (done.code, done.out.strip()) == (0, "1 sent again.")
    assert done.err.count("passed over") == 3
    await letters.all_back(4)
    assert await letters.depth("") == 1
    done = await letters.run("purge", ids["a"], "--yes")
    assert (done.code, done.out.strip()) == (0, "1 thrown away.")
    await letters.all_back(3)
    done = await letters.run("replay", "--all")
    assert (done.code, done.out.strip()) == (0, "0 sent again.")
    await letters.all_back(3)


async def test_they_are_thrown_away_by_themselves(letters: Letters) -> None:
    await letters.fill("a", ODD, "b", ODD)
    asked = await letters.run("purge", "--undeliverable", stdin=b"n\n")
    assert "Throw 2 dead letters" in asked.out
    await letters.all_back(4)
    done = await letters.run("purge", "--undeliverable", stdin=b"y\n")
    assert "2 thrown away." in done.out
    await letters.all_back(2)
    assert sorted(await letters.keys()) == ["a", "b"]


async def test_they_go_with_all(letters: Letters) -> None:
    await letters.fill("a", ODD, "b")
    done = await letters.run("purge", "--all", "--yes")
    assert (done.code, done.out.strip()) == (0, "3 thrown away.")
    await asyncio.sleep(1)  # nothing comes back
    assert await letters.depth() == 0


async def test_others_are_sent_again_once_each_among_many(letters: Letters) -> None:
    names = [str(number) for number in range(60)] + [ODD] * 6
    Random(7).shuffle(names)
    await letters.fill(*names)
    done = await letters.run("replay", "--all")
    assert (done.code, done.out.strip()) == (0, "60 sent again."), done.err
    assert done.err.count("passed over") == 6
    await letters.all_back(6)
    assert await letters.depth("") == 60


@pytest.mark.parametrize("order", [[ODD, ODD, ODD, "a"], [ODD, "a", ODD, "b", ODD]])
async def test_letters_that_returned_in_any_order_are_told_apart(
    letters: Letters, amqp_url: str, order: Sequence[str]
) -> None:
    """As a killed command leaves them: all have returned, and none is new."""
    await letters.fill(*order)
    async with open_dead_letters(amqp_url, Topology(letters.queue)) as opened:
        assert [each.key async for each in opened.look()] == [name for name in order if name != ODD]
        # The holding connection ends before the others, so the undeliverable ones return first.
        assert opened._reader._holder is not None
        await opened._reader._holder.close()
        await asyncio.sleep(1)
    for _ in range(2):
        await letters.all_back(len(order))
        shown, said = await letters.listed()
        assert sorted(each["idempotency_key"] for each in shown) == sorted(set(order) - {ODD})
        assert said.count("passed over") == order.count(ODD)
