"""One session at the broker: its deliveries, prefetch and end."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
import uvloop
from yarl import URL

from tests.faults.test_poison import publish_raw
from tests.support.processes import free_ports
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from worker.amqp.properties import join, split
from worker.amqp.publication import Confirm, Publication
from worker.broker.connection import BrokerRefused, BrokerUnavailable, ChannelLost
from worker.broker.consumer import SUSPECT_DELIVERY_COUNT
from worker.broker.session import Session
from worker.broker.topology import Topology, TopologyMismatch
from worker.contract.delivery import Delivery

Open = Callable[..., Awaitable[Session]]


@pytest.fixture
async def opened(amqp_url: str, queue: str) -> AsyncIterator[Open]:
    """Sessions on this test's queue, closed at its end."""
    sessions: list[Session] = []

    async def open_session(url: str = amqp_url, **options: Any) -> Session:
        topology = Topology(queue)
        session = await Session.open(url, topology, name="test", **options)
        sessions.append(session)
        return session

    yield open_session
    for session in sessions:
        await session.close()


async def taken(session: Session, count: int) -> list[Delivery]:
    deliveries: list[Delivery] = []
    async with asyncio.timeout(120):
        while len(deliveries) < count:
            more = await session.consumer.deliveries.take(count - len(deliveries))
            assert more, "the session ended"
            deliveries += more
    return deliveries


async def acknowledged(session: Session) -> None:
    """Write pending acknowledgements, and wait for a round trip after them."""
    session.consumer.acknowledger.close()
    await session.consumer.acknowledger.run()
    await session.consumer._channel.get_queue(session.topology.queue)


async def nothing_more(session: Session, producer: Producer) -> None:
    """Wait for a round trip on its channel: all earlier frames of the broker have arrived."""
    await session.redeclare()
    await session.consumer._channel.get_queue(producer.queue)
    assert len(session.consumer.deliveries) == 0


async def test_messages_come_as_they_were_published_and_in_their_order(
    opened: Open, producer: Producer
) -> None:
    session = await opened()
    for number in range(100):
        await producer.publish(
            {"number": number}, headers={"mine": 0.5, "list": [1, "a"]}, message_id=str(number), timestamp=5
        )
    consuming = asyncio.create_task(session.consumer.consume(100))
    deliveries = await taken(session, 100)
    await consuming
    assert [each.tag for each in deliveries] == list(range(1, 101))
    assert [json.loads(each.message.body)["number"] for each in deliveries] == list(range(100))
    message = deliveries[7].message
    assert (message.message_id, message.reply_to, message.delivery_mode) == ("7", producer.reply_to, 2)
    assert message.headers == {"mine": 0.5, "list": [1, "a"]}
    assert split(message.raw_properties)["message_id"] == b"\x017"
    assert not message.redelivered
    assert session.consumer.in_flight.bytes > sum(each.size for each in deliveries)
    session.consumer.acknowledge(deliveries)
    assert session.consumer.in_flight.bytes == 0
    await acknowledged(session)
    await session.close()
    assert await producer.depth() == 0


async def test_what_is_not_acknowledged_comes_again_and_counts(opened: Open, producer: Producer) -> None:
    session = await opened()
    await producer.publish({})
    consuming = asyncio.create_task(session.consumer.consume(10))
    (first,) = await taken(session, 1)
    assert (first.redelivered, first.delivery_count) == (False, 0)
    await consuming
    await session.close()
    session = await opened()
    consuming = asyncio.create_task(session.consumer.consume(10))
    (again,) = await taken(session, 1)
    assert (again.redelivered, again.delivery_count) == (True, 1)
    await consuming


async def test_a_suspect_is_served_alone_and_then_all_are_let_in(opened: Open, producer: Producer) -> None:
    """It may have killed the previous worker, and must not harm its neighbours."""
    await (await opened()).close()
    await producer.publish({"name": "suspect"})
    for _ in range(SUSPECT_DELIVERY_COUNT):
        session = await opened()
        consuming = asyncio.create_task(session.consumer.consume(10))
        await taken(session, 1)
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)
        await session.close()
    for _ in range(5):
        await producer.publish({})
    session = await opened()
    consuming = asyncio.create_task(session.consumer.consume(10))
    (suspect,) = await taken(session, 1)
    assert suspect.delivery_count == SUSPECT_DELIVERY_COUNT
    await nothing_more(session, producer)
    assert not consuming.done()
    session.consumer.acknowledge([suspect])
    await acknowledged(session)
    others = await taken(session, 5)
    await consuming
    assert {each.delivery_count for each in others} == {0}
    assert session.consumer.prefetch == 10


async def test_no_more_come_once_consuming_has_stopped(opened: Open, producer: Producer) -> None:
    session = await opened()
    await producer.publish({})
    consuming = asyncio.create_task(session.consumer.consume(10))
    deliveries = await taken(session, 1)
    await consuming
    await session.consumer.stop()
    assert session.consumer.prefetch == 0
    await producer.publish({})
    assert await session.consumer.deliveries.take(10) == []
    session.consumer.acknowledge(deliveries)
    await acknowledged(session)
    await session.close()
    async with asyncio.timeout(120):
        while await producer.depth() != 1:
            await asyncio.sleep(0.05)


def test_reading_stops_whatever_size_comes_behind_small_ones(amqp_url: str, queue: str) -> None:
    """Hundreds are let in by then, each larger than asyncio's stream buffer. It runs on the
    worker's event loop, which reads more at a time.
    """

    async def hold() -> None:
        session = await Session.open(amqp_url, Topology(queue), name="test", prefetch_size=4_000_000)
        async with Producer(amqp_url, queue) as producer:
            for size, count in ((100, 200), (1_000_000, 100)):
                await asyncio.gather(*(producer.publish(b"x" * size) for _ in range(count)))
        await session.consumer.consume(1000)
        async with asyncio.timeout(120):
            while not session.consumer.in_flight.paused:
                await asyncio.sleep(0.02)
        await asyncio.sleep(1)
        assert session.consumer.prefetch > 200
        assert session.consumer.in_flight.bytes < 6_000_000
        await session.close()

    uvloop.run(hold())


async def test_reading_stops_while_too_many_bytes_are_held_and_the_connection_lives(
    opened: Open, producer: Producer, rabbitmq: RabbitMQ
) -> None:
    """Longer than both heartbeat timeouts: three heartbeats and three seconds for aiormq, two
    heartbeats for the broker.
    """
    session = await opened(str(URL(rabbitmq.url).update_query(heartbeat=1)), prefetch_size=1_000_000)
    for _ in range(60):
        await producer.publish(b"x" * 100_000)
    acknowledging = asyncio.create_task(session.consumer.acknowledger.run())
    consuming = asyncio.create_task(session.consumer.consume(1000))
    deliveries = await taken(session, 10)
    async with asyncio.timeout(120):
        while not session.consumer.in_flight.paused:
            await asyncio.sleep(0.02)
    await asyncio.sleep(10)
    assert not session.lost.done()
    assert session.consumer.in_flight.paused
    # One read of the socket, and the bodies in transit then, may exceed the limit.
    assert session.consumer.in_flight.bytes < 2_000_000
    received = len(deliveries)
    while received < 60:
        session.consumer.acknowledge(deliveries)
        deliveries = await taken(session, 1)
        received += len(deliveries)
    await consuming
    # The prefetch has been lowered to this size of requests.
    assert session.consumer.prefetch < 20
    assert not session.lost.done()
    session.consumer.acknowledger.close()
    await acknowledging


async def test_a_url_without_a_user_is_guests(opened: Open, rabbitmq: RabbitMQ) -> None:
    await opened(str(URL(rabbitmq.url).with_user(None).with_password(None)))


async def test_a_queue_that_is_deleted_ends_the_session(opened: Open, producer: Producer) -> None:
    session = await opened()
    await session.consumer.consume(1)
    consuming = asyncio.create_task(session.consumer.consume(10))
    async with asyncio.timeout(120):
        await producer.channel.queue_delete(producer.queue)
        assert "cancelled the consumer" in str(await session.lost)
        assert await session.consumer.deliveries.take(1) == []
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)


async def test_the_topology_is_declared_again_when_a_part_of_it_is_gone(
    opened: Open, producer: Producer
) -> None:
    session = await opened()
    dead = f"{producer.queue}.dead"
    await producer.channel.queue_delete(dead)
    letters = [Publication(dead, join({}), b"x")]
    async with session.another_publisher() as publisher:
        confirmation = await publisher.publish(letters)
        await confirmation.wait(120)
        assert confirmation.confirms == [Confirm.RETURN]
    await session.redeclare()
    async with session.another_publisher() as publisher:
        confirmation = await publisher.publish(letters)
        await confirmation.wait(120)
        assert confirmation.all_taken
    assert await producer.depth(dead) == 1


async def test_what_closes_another_publishers_channel_costs_the_session_nothing(opened: Open) -> None:
    session = await opened()
    gone = [Publication(f"none-{uuid4()}", join({"expiration": b"\4soon"}), b"")]
    async with session.another_publisher() as publisher:
        confirmation = await publisher.publish(gone)
        with pytest.raises(ChannelLost, match="expiration"):
            await confirmation.wait(120)
    assert not session.lost.done()
    confirmation = await session.publisher.publish([Publication("none", join({}), b"")])
    await confirmation.wait(120)
    assert confirmation.confirms == [Confirm.RETURN]


async def test_the_first_url_that_answers_is_used(opened: Open, rabbitmq: RabbitMQ) -> None:
    dead, another = free_ports(2)
    nobody = f"amqp://127.0.0.1:{dead}/"
    await opened(f"{nobody},{rabbitmq.url}")
    wrong = str(URL(rabbitmq.url).with_password("wrong"))
    await opened(f"{wrong}, {rabbitmq.url}")
    with pytest.raises(BrokerUnavailable, match=rf"{dead}.*{another}"):
        await opened(f"{nobody},amqp://127.0.0.1:{another}/")
    # With another one to try, a refusal is worth waiting for.
    with pytest.raises(BrokerUnavailable, match="refuses the login"):
        await opened(f"{nobody},{wrong}")
    with pytest.raises(BrokerRefused, match="refuses the login"):
        await opened(f"{wrong},{wrong}")


async def test_what_stands_otherwise_is_a_mismatch(opened: Open, producer: Producer) -> None:
    await producer.channel.declare_queue(f"{producer.queue}.dead", durable=True)
    with pytest.raises(TopologyMismatch, match=r"\.dead.*inequivalent arg"):
        await opened()


async def test_rights_that_are_missing_are_told_by_the_trial(
    opened: Open, rabbitmq: RabbitMQ, queue: str
) -> None:
    await (await opened()).close()
    user = f"user-{queue}"
    rabbitmq.ctl("add_user", user, "secret")
    url = str(URL(rabbitmq.url).with_user(user).with_password("secret"))
    try:
        for write, read, told in (
            ("^$", ".*", "amq.default"),
            (".*", f"^(?!{queue}$).*", f"queue '{queue}'"),
        ):
            rabbitmq.ctl("set_permissions", user, ".*", write, read)
            with pytest.raises(BrokerRefused, match=told):
                await opened(url, try_out="publish first")
    finally:
        rabbitmq.ctl("delete_user", user)


async def test_an_interrupted_opening_leaves_no_connection(
    amqp_url: str, queue: str, rabbitmq: RabbitMQ
) -> None:
    name = f"interrupted-{uuid4().hex[:8]}"
    for steps in range(0, 60, 7):
        opening = asyncio.create_task(Session.open(amqp_url, Topology(queue), name=name))
        for _ in range(steps):
            await asyncio.sleep(0)
        opening.cancel()
        done = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(done[0], Session):
            await done[0].close()
    async with asyncio.timeout(120):
        while name in rabbitmq.ctl("list_connections", "client_properties"):
            await asyncio.sleep(0.2)


async def test_a_delivery_that_aio_pika_could_not_read_comes_all_the_same(
    opened: Open, amqp_url: str
) -> None:
    """So do its neighbours. Without our reader, aiormq would end the connection."""
    session = await opened()
    queue = session.topology.queue
    await publish_raw(amqp_url, queue, 1024, b"\x03a\xff\xfe", b"one")
    await publish_raw(amqp_url, queue, 0, b"", b"two")
    consuming = asyncio.create_task(session.consumer.consume(10))
    odd, plain = await taken(session, 2)
    await consuming
    assert odd.message.raw_properties == b"\x04\x00\x03a\xff\xfe"
    assert odd.message.unreadable.keys() == {"correlation_id"}
    assert (bytes(odd.message.body), bytes(plain.message.body)) == (b"one", b"two")
