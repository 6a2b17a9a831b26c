"""Other libraries label plain JSON in their own ways, and add headers of their own."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import kombu
import pytest

from tests.conftest import StartWorker
from tests.support.database import fetch_runs
from tests.support.producer import Producer

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
BODY = {"flow_id": FLOW_ID, "name": "Müller 🚀", "labels": {"tier": 2}}


@contextmanager
def kombu_producer(amqp_url: str) -> Iterator[kombu.Producer]:
    # kombu's own transport: "amqp" means librabbitmq where that is installed.
    with kombu.Connection(amqp_url.replace("amqp://", "pyamqp://")) as connection:
        yield connection.Producer()


@pytest.mark.parametrize(
    ("body", "options", "labels"),
    [
        pytest.param(BODY, {}, ("application/json", "utf-8"), id="an object"),
        pytest.param(
            b'{"flow_id": "%s", "name": "M\\u00fcller \\ud83d\\ude80"}' % FLOW_ID.encode(),
            {"content_type": "application/json"},
            ("application/json", "binary"),
            id="bytes",
        ),
        pytest.param(
            f'{{"flow_id": "{FLOW_ID}", "name": "Müller 🚀"}}',
            {"content_type": "application/json"},
            ("application/json", "utf-8"),
            id="text",
        ),
    ],
)
async def test_kombu_publishes_and_gets_the_record(
    start_worker: StartWorker,
    producer: Producer,
    sqlite_url: str,
    amqp_url: str,
    body: Any,
    options: dict[str, Any],
    labels: tuple[str, str],
) -> None:
    start_worker(sqlite_url)

    def publish() -> tuple[str, str]:
        with kombu_producer(amqp_url) as kombus:
            _, content_type, content_encoding = kombus._prepare(body, headers={}, **options)
            kombus.publish(
                body,
                routing_key=producer.queue,
                reply_to=producer.reply_to,
                correlation_id="kombu",
                **options,
            )
            return content_type, content_encoding

    assert await asyncio.to_thread(publish) == labels
    (reply,) = await producer.replies_to(["kombu"])
    assert (reply.status, reply.body.get("name")) == (201, "Müller 🚀")
    assert await producer.depth(f"{producer.queue}.dead") == 0


async def test_kombu_that_compresses_is_refused(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, amqp_url: str
) -> None:
    """It still labels the body as plain JSON, and names the compression in a header of its own."""
    start_worker(sqlite_url)

    def publish() -> None:
        with kombu_producer(amqp_url) as kombus:
            kombus.publish(
                BODY,
                compression="gzip",
                routing_key=producer.queue,
                reply_to=producer.reply_to,
                correlation_id="kombu",
            )

    await asyncio.to_thread(publish)
    (reply,) = await producer.replies_to(["kombu"])
    assert reply.status == 415
    assert "application/x-gzip" in reply.body["detail"]


async def test_spring_amqp_publishes_again_and_gets_the_same_run(
    start_worker: StartWorker, producer: Producer, sqlite_url: str
) -> None:
    """As its RabbitTemplate does with a JSON converter, correlated confirms and Micrometer's
    tracing: everything but the message's id is written anew.
    """
    start_worker(sqlite_url)

    async def publish() -> tuple[int, str]:
        reply = await producer.request(
            BODY,
            correlation_id="spring",
            content_type="application/json",
            content_encoding="UTF-8",
            message_id="order-4711",
            priority=0,
            headers={
                "__TypeId__": "com.example.CreateFlowRun",
                "spring_listener_return_correlation": str(uuid4()),
                "spring_returned_message_correlation": str(uuid4()),
                "traceparent": f"00-{uuid4().hex}-{uuid4().hex[:16]}-01",
                "X-B3-TraceId": uuid4().hex,
            },
        )
        producer.replies.clear()
        return reply.status, reply.body["id"]

    first, second = await publish(), await publish()
    assert (first[0], second[0]) == (201, 200)
    assert first[1] == second[1]
    assert len(await fetch_runs(sqlite_url)) == 1
