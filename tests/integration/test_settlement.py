"""Replies, dead letters and acknowledgements of answers."""

import asyncio
from contextlib import suppress
from uuid import uuid4

from aio_pika import Message
from aio_pika.exceptions import DeliveryError

from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from worker.broker.session import Session
from worker.broker.topology import Topology
from worker.contract.delivery import Delivery
from worker.line.patience import PATIENCE, Patience
from worker.line.settle import Settlement
from worker.line.values import Answer
from worker.observability import metrics
from worker.observability.traces import Traces

RECORD = b'{"id": 1}'


async def taken(session: Session, count: int, prefetch: int = 1000) -> list[Delivery]:
    """Take deliveries with this prefetch."""
    consuming = asyncio.create_task(session.consumer.consume(prefetch))
    deliveries: list[Delivery] = []
    async with asyncio.timeout(120):
        while len(deliveries) < count:
            deliveries += await session.consumer.deliveries.take(count)
    await consuming
    return deliveries


def created(delivery: Delivery) -> Answer:
    return Answer(delivery, 201, RECORD, run_id=uuid4())


def refused(delivery: Delivery) -> Answer:
    return Answer(delivery, 422, b'{"detail": "no"}', refused="It is wrong.")


async def settle(session: Session, *batches: list[Answer], patience: Patience = PATIENCE) -> None:
    """Settle batches in turn, and wait until everything is published and acknowledged."""
    async with asyncio.timeout(180), asyncio.TaskGroup() as tasks:
        tasks.create_task(session.consumer.acknowledger.run())
        settling = Settlement(session, tasks, Traces(), prefetch=1000, patience=patience)
        for batch in batches:
            await settling.settle(batch)
        await settling.finish()
        session.consumer.acknowledger.close()
    await session.consumer._channel.get_queue(session.topology.queue)  # a round trip after the last frame
    assert session.consumer.in_flight.bytes == 0


async def left(session: Session, producer: Producer) -> int:
    """The number of requests that would be redelivered."""
    await session.close()
    return await producer.depth()


async def test_answers_are_replied_to_kept_and_acknowledged(session: Session, producer: Producer) -> None:
    ids = [await producer.publish({"number": number}) for number in range(60)]
    deliveries = await taken(session, 60)
    answers = [refused(each) if each.tag % 3 == 0 else created(each) for each in deliveries]
    await settle(session, answers[:1], answers[1:40], [], answers[40:])
    replies = await producer.replies_to(ids)
    assert [reply.status for reply in replies] == [422 if tag % 3 == 0 else 201 for tag in range(1, 61)]
    letters = await producer.dead_letters(20)
    assert {letter.headers["x-error"] for letter in letters} == {"It is wrong."}
    assert [letter.body["number"] for letter in letters] == list(range(2, 60, 3))
    assert await left(session, producer) == 0


async def test_one_that_wants_no_reply_or_may_have_none_gets_none(
    session: Session, producer: Producer
) -> None:
    await producer.publish({}, reply_to=None)
    await producer.publish({}, reply_to="")
    await producer.publish({})
    first, second, third = await taken(session, 3)
    barred = Answer(third, 400, b"{}", refused="not there", replied=False)
    await settle(session, [created(first), refused(second), barred])
    assert [letter.headers["x-error-status"] for letter in await producer.dead_letters(2)] == [422, 400]
    assert await left(session, producer) == 0
    assert producer.replies == {}


async def test_a_reply_that_nobody_takes_is_given_up_and_the_dead_letter_is_not(
    session: Session, producer: Producer
) -> None:
    full = await producer.channel.declare_queue(
        f"{producer.queue}.full",
        exclusive=True,
        arguments={"x-max-length": 0, "x-overflow": "reject-publish"},
    )
    for reply_to in ("no-such-queue", "amq.rabbitmq.reply-to.nobody", full.name):
        await producer.publish({}, reply_to=reply_to)
    good = await producer.publish({})
    deliveries = await taken(session, 4)
    answers = [*map(refused, deliveries[:3]), created(deliveries[3])]
    await settle(session, answers, patience=Patience(reply=1.0))
    assert (await producer.replies_to([good]))[0].status == 201
    assert len(await producer.dead_letters(3)) == 3
    assert await left(session, producer) == 0


async def test_a_reply_over_which_the_broker_closes_the_channel_is_given_up_and_the_event_is_not(
    amqp_url: str, queue: str, producer: Producer, rabbitmq: RabbitMQ
) -> None:
    """Its queue is full, so it waits for a channel of its own; by then it is too large."""
    full = await producer.channel.declare_queue(
        f"{queue}.full", exclusive=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"}
    )
    topology = Topology(queue, events=True)
    session = await Session.open(amqp_url, topology, name="test")
    await producer.publish({}, reply_to=full.name)
    # Where RabbitMQ 3.10 and 4 keep the setting.
    limit = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})."
    try:
        (delivery,) = await taken(session, 1)
        recorded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer = Answer(delivery, 201, b"x" * 20_000, run_id=uuid4(), recorded=recorded)
        async with asyncio.timeout(180), asyncio.TaskGroup() as tasks:
            tasks.create_task(session.consumer.acknowledger.run())
            settling = Settlement(session, tasks, Traces(), prefetch=1000)
            given_up = metrics.replies_unroutable._value.get()
            await settling.settle([answer])
            while not settling._publishing._aside:
                await asyncio.sleep(0.001)
            rabbitmq.ctl("eval", limit.format(8000))  # nothing else runs here until it is set
            while metrics.replies_unroutable._value.get() == given_up:
                await asyncio.sleep(0.05)
            assert session.consumer.in_flight.bytes > 0
            recorded.set_result(None)
            await settling.finish()
            session.consumer.acknowledger.close()
        assert session.consumer.in_flight.bytes == 0
    finally:
        rabbitmq.ctl("eval", limit.format(134217728))
        await session.close()
        await producer.channel.queue_delete(topology.events_queue)


async def test_one_answer_that_hangs_holds_up_no_other_acknowledgement(
    session: Session, producer: Producer, rabbitmq: RabbitMQ
) -> None:
    """Its dead letter is refused; the others of its batch are acknowledged meanwhile."""
    dead = f"{producer.queue}.dead"
    ids = [await producer.publish({"number": number}) for number in range(20)]
    deliveries = await taken(session, 20)
    async with asyncio.timeout(180), asyncio.TaskGroup() as tasks:
        tasks.create_task(session.consumer.acknowledger.run())
        settling = Settlement(session, tasks, Traces(), prefetch=1000)
        with rabbitmq.full(dead, 1):
            for _ in range(100):  # the queue takes a few more
                with suppress(DeliveryError):
                    await producer.channel.default_exchange.publish(Message(b""), routing_key=dead)
            await settling.settle([refused(deliveries[0]), *map(created, deliveries[1:])])
            await producer.replies_to(ids)
            while len(session.consumer.in_flight._sizes) > 1:
                await asyncio.sleep(0.05)
            assert set(session.consumer.in_flight._sizes) == {1}
        await settling.finish()
        session.consumer.acknowledger.close()
    letters = await producer.dead_letters(await producer.depth(dead))
    assert [letter.body for letter in letters if letter.raw] == [{"number": 0}]
    assert await left(session, producer) == 0
    assert {len(producer.replies[each]) for each in ids} == {1}


async def test_a_dead_letter_queue_that_is_gone_is_declared_again(
    session: Session, producer: Producer
) -> None:
    await producer.channel.queue_delete(f"{producer.queue}.dead")
    ids = [await producer.publish({"number": number}) for number in range(3)]
    await settle(session, list(map(refused, await taken(session, 3))))
    letters = await producer.dead_letters(3)
    assert sorted(letter.body["number"] for letter in letters) == [0, 1, 2]
    await producer.replies_to(ids)
    assert {len(producer.replies[each]) for each in ids} == {1}
    assert await left(session, producer) == 0


async def test_answers_of_every_size_arrive_whole(session: Session, producer: Producer) -> None:
    """Each that is larger than all before is sent alone; none is lost between two frames."""
    sizes = (0, 1, 131_064, 131_065, 200_000, 3_000_000, 50)
    ids = [await producer.publish({"number": number}) for number in range(len(sizes))]
    deliveries = await taken(session, len(sizes))
    answers = [
        Answer(delivery, 201, b"x" * size, run_id=uuid4())
        for delivery, size in zip(deliveries, sizes, strict=True)
    ]
    await settle(session, answers)
    replies = await producer.replies_to(ids)
    assert [len(reply.raw) for reply in replies] == list(sizes)
    assert await left(session, producer) == 0
