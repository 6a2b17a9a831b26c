"""A message stays the same message, and makes one run, if it arrives by another way: a shovel, or a
broker that writes the time into it.
"""

import json
from collections.abc import Iterator
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractExchange

from tests.conftest import StartWorker
from tests.support.database import fetch_runs
from tests.support.producer import Producer, Reply
from tests.support.rabbitmq import RabbitMQ

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
    with RabbitMQ(plugins=["rabbitmq_shovel"]) as node:
        yield node


async def send(producer: Producer, exchange: AbstractExchange, key: str, **written: Any) -> Reply:
    """Send the same message with these properties written on the way; returns its reply."""
    producer.replies.clear()
    headers = {"mine": 1, **written.pop("headers", {})}
    message = aio_pika.Message(
        json.dumps({"flow_id": FLOW_ID}).encode(),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id="order-4711",
        reply_to=producer.reply_to,
        correlation_id="order-4711",
        headers=headers,
        **written,
    )
    await exchange.publish(message, key)
    (reply,) = await producer.replies_to(["order-4711"], 60)
    return reply


async def test_a_message_by_a_shovel_is_the_same(
    start_worker: StartWorker, producer: Producer, rabbitmq: RabbitMQ, sqlite_url: str
) -> None:
    start_worker(sqlite_url)
    exchange, _, key = producer.queue.rpartition(".")
    for name in ("one", "two"):
        await producer.channel.declare_queue(f"{exchange}.{name}", durable=True)
        shovel = {
            "src-protocol": "amqp091",
            "src-uri": f"{rabbitmq.url}%2f",
            "src-queue": f"{exchange}.{name}",
            "dest-protocol": "amqp091",
            "dest-uri": f"{rabbitmq.url}%2f",
            "dest-exchange": exchange,
            "dest-exchange-key": key,
            "dest-add-forward-headers": True,
            "dest-add-timestamp-header": True,
        }
        rabbitmq.ctl("set_parameter", "shovel", f"{exchange}.{name}", json.dumps(shovel))
    default = producer.channel.default_exchange

    direct = await send(producer, default, producer.queue)
    by_one = await send(producer, default, f"{exchange}.one")
    by_two = await send(producer, default, f"{exchange}.two")
    assert [each.status for each in (direct, by_one, by_two)] == [201, 200, 200]
    assert len({each.body["id"] for each in (direct, by_one, by_two)}) == 1
    assert len(await fetch_runs(sqlite_url)) == 1


async def test_a_message_into_which_the_broker_writes_the_time_is_the_same(
    start_worker: StartWorker, producer: Producer, sqlite_url: str
) -> None:
    """As RabbitMQ 3.12 and newer do with the interceptor ``set_header_timestamp``."""
    start_worker(sqlite_url)
    replies = []
    for seconds in (1_900_000_000, 1_900_000_001):
        written = {"timestamp": seconds, "headers": {"timestamp_in_ms": seconds * 1000}}
        replies.append(await send(producer, producer.channel.default_exchange, producer.queue, **written))
    assert [each.status for each in replies] == [201, 200]
    assert len(await fetch_runs(sqlite_url)) == 1
