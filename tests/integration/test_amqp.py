"""Reading and writing on a real broker: in bulk and by aio-pika alone, the same is seen."""

import asyncio
from collections import Counter
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from tests.support.rabbitmq import RabbitMQ
from worker.amqp import plain, reading, writing
from worker.amqp.properties import join, short_string
from worker.amqp.publication import Confirm, Outgoing, Publication
from worker.amqp.transport import Connection

BULK = SimpleNamespace(read=reading.read, Writer=writing.Writer)
FULL = {"x-max-length": 0, "x-overflow": "reject-publish"}
NO_UTF8 = join({"correlation_id": b"\x02\xff\xfe", "message_id": short_string("m")})


@pytest.fixture(params=[BULK, plain], ids=["in bulk", "by aio-pika alone"])
def way(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def channel(connection: Connection) -> AbstractChannel:
    return await connection.channel(publisher_confirms=True)


async def name(connection: Connection, **options: Any) -> str:
    queue = await (await connection.channel()).declare_queue(exclusive=True, **options)
    return queue.name


class Confirms:
    """What the broker said of each publication that was written."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.of: dict[int, list[Confirm]] = {}

    async def write(self, *publications: Publication) -> None:
        outgoing = []
        for publication in publications:
            told: list[Confirm] = []
            self.of[len(self.of)] = told
            outgoing.append(Outgoing(publication, told.append))
        await self._writer.write(outgoing)

    async def all(self) -> list[list[Confirm]]:
        async with asyncio.timeout(120):
            while not all(self.of.values()):
                await asyncio.sleep(0.01)
        return list(self.of.values())


async def read_all(way: Any, connection: Connection, queue: str, count: int) -> list[tuple[Any, ...]]:
    seen: list[tuple[Any, ...]] = []
    channel = await connection.channel(publisher_confirms=False)
    consume = way.read(connection, channel, lambda *delivery: seen.append(delivery))
    await (await channel.get_queue(queue)).consume(consume)
    async with asyncio.timeout(120):
        while len(seen) < count:
            await asyncio.sleep(0.01)
    return seen


async def test_each_is_told_whether_it_was_taken_came_back_or_was_refused_and_only_once(
    way: ModuleType, connection: Connection, channel: AbstractChannel
) -> None:
    taking, full = await name(connection), await name(connection, arguments=FULL)
    confirms = Confirms(way.Writer(connection, channel))
    queues = [taking, f"none-{uuid4()}", full, taking, f"none-{uuid4()}"] * 100
    await confirms.write(*(Publication(queue, join({}), b"") for queue in queues))
    await confirms.write(Publication(f"none-{uuid4()}", join({}), b"", mandatory=False))
    expected = [Confirm.ACK, Confirm.RETURN, Confirm.NACK, Confirm.ACK, Confirm.RETURN] * 100
    assert await confirms.all() == [[each] for each in [*expected, Confirm.ACK]]


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 3_000_000])
async def test_bodies_and_properties_of_every_kind_arrive_as_they_were_written(
    way: ModuleType, connection: Connection, channel: AbstractChannel, size: int
) -> None:
    queue = await name(connection)
    raws = [NO_UTF8, join({}), join({"message_id": short_string("x" * 255)})]
    confirms = Confirms(way.Writer(connection, channel))
    await confirms.write(*(Publication(queue, raw, b"x" * size) for raw in raws))
    assert await confirms.all() == [[Confirm.ACK]] * 3
    seen = await read_all(way, connection, queue, 3)
    route = short_string("") + short_string(queue)
    assert [(tag, raw, redelivered, came) for tag, raw, _, redelivered, came in seen] == [
        (tag, raw, False, route) for tag, raw in enumerate(raws, start=1)
    ]
    assert {bytes(body) for _, _, body, *_ in seen} == {b"x" * size}


async def test_what_several_tasks_write_is_whole_and_each_is_confirmed(
    way: ModuleType, connection: Connection, channel: AbstractChannel
) -> None:
    queue = await name(connection)
    confirms = Confirms(way.Writer(connection, channel))
    bodies = [bytes([65 + number]) * 200_000 for number in range(20)]
    await asyncio.gather(*(confirms.write(*[Publication(queue, join({}), body)] * 3) for body in bodies))
    assert await confirms.all() == [[Confirm.ACK]] * 60
    seen = await read_all(way, connection, queue, 60)
    assert Counter(bytes(body) for _, _, body, *_ in seen) == Counter(dict.fromkeys(bodies, 3))


async def test_what_was_delivered_before_says_so(
    way: ModuleType, amqp_url: str, connection: Connection, channel: AbstractChannel
) -> None:
    queue = f"amqp-{uuid4().hex[:8]}"
    await (await connection.channel()).declare_queue(queue, durable=True)
    confirms = Confirms(way.Writer(connection, channel))
    await confirms.write(Publication(queue, NO_UTF8, b"x"))
    await confirms.all()
    other = await aio_pika.connect(amqp_url, connection_class=Connection)
    route = short_string("") + short_string(queue)
    assert await read_all(way, other, queue, 1) == [(1, NO_UTF8, b"x", False, route)]
    await other.close()
    assert await read_all(way, connection, queue, 1) == [(1, NO_UTF8, b"x", True, route)]
    await (await connection.channel()).queue_delete(queue)


async def test_nothing_is_read_while_reading_is_paused(
    way: ModuleType, amqp_url: str, connection: Connection, channel: AbstractChannel
) -> None:
    queue = await name(connection)
    seen: list[int] = []
    consuming = await connection.channel(publisher_confirms=False)
    consume = way.read(connection, consuming, lambda tag, *_: seen.append(tag))
    await (await consuming.get_queue(queue, ensure=False)).consume(consume)
    connection.frames.pause_reading()
    async with await aio_pika.connect(amqp_url) as other, other.channel() as producing:
        for _ in range(10):
            await producing.default_exchange.publish(aio_pika.Message(b"x"), queue)
    await asyncio.sleep(0.5)
    assert seen == []
    connection.frames.resume_reading()
    async with asyncio.timeout(120):
        while len(seen) < 10:
            await asyncio.sleep(0.01)
    assert not connection.is_closed


async def test_an_alarm_is_told_and_its_end_as_well(
    way: ModuleType, connection: Connection, channel: AbstractChannel, rabbitmq: RabbitMQ
) -> None:
    queue = await name(connection)
    confirms = Confirms(way.Writer(connection, channel))
    written = 0
    await asyncio.to_thread(rabbitmq.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        async with asyncio.timeout(120):
            # The broker looks at its memory once in a while, and blocks at the next publication.
            while not connection.frames.blocked_event.is_set():
                await confirms.write(Publication(queue, join({}), b""))
                written += 1
                await asyncio.sleep(0.1)
        assert connection.frames.blocked == "low on memory"
    finally:
        await asyncio.to_thread(rabbitmq.ctl, "set_vm_memory_high_watermark", "absolute", "2GB")
    async with asyncio.timeout(120):
        await connection.frames.unblocked.wait()
    assert await confirms.all() == [[Confirm.ACK]] * written


async def test_a_channel_that_the_broker_closes_ends_a_write_and_confirms_nothing(
    way: ModuleType, connection: Connection, channel: AbstractChannel
) -> None:
    closed = asyncio.Event()
    channel.close_callbacks.add(lambda *_: closed.set())
    confirms = Confirms(way.Writer(connection, channel))
    taken = await name(connection)
    await confirms.write(Publication(taken, join({}), b""))
    await confirms.all()
    await confirms.write(Publication(taken, join({"expiration": short_string("soon")}), b""))
    async with asyncio.timeout(120):
        await closed.wait()
    write = partial(confirms.write, Publication(taken, join({}), b""))
    if way is BULK:
        with pytest.raises(CONNECTION_EXCEPTIONS):
            await write()
    else:
        await write()
    await asyncio.sleep(0.1)
    assert list(confirms.of.values()) == [[Confirm.ACK], [], []]
