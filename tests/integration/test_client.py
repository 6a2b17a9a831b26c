"""The producer client: its errors, its recovery from lost connections, and that closing it ends
pending calls.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any, Self

import pytest
from yarl import URL

from tests.support.command import command
from tests.support.producer import Producer
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from worker.broker.session import Session
from worker.client import (
    AccessRefused,
    BrokerGone,
    FlowRunClient,
    FlowRunRefused,
    InvalidFlowRun,
    MessageRefused,
    NoReply,
    NotRoutable,
    NotSerializable,
    NotTaken,
    PublishOutcome,
)
from worker.client import client as client_module
from worker.client import connection as connection_module
from worker.client.connection import ClientConnection
from worker.client.sync import FlowRunClient as SyncClient

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


def connection_of(client: FlowRunClient) -> ClientConnection | None:
    """The client's connection in the one event loop that has used it."""
    for sender in client._senders.values():
        return sender._reconnector.current
    return None


async def test_refusal_is_raised_with_its_errors(shared_worker: Producer, amqp_url: str) -> None:
    async with FlowRunClient(amqp_url, queue=shared_worker.queue) as client:
        with pytest.raises(InvalidFlowRun) as refused:
            await client.request({"flow_id": "none"}, check=False)
    assert refused.value.status == 422
    assert refused.value.maybe_sent
    assert refused.value.errors[0]["loc"] == ["body", "flow_id"]


async def test_no_such_queue_is_told(amqp_url: str, queue: str) -> None:
    async with FlowRunClient(amqp_url, queue=queue) as client:
        with pytest.raises(NotRoutable, match=queue):
            await client.publish({"flow_id": FLOW_ID})


async def test_no_worker_is_a_timeout(producer: Producer, amqp_url: str, queue: str) -> None:
    await producer.channel.declare_queue(queue, auto_delete=True)
    async with FlowRunClient(amqp_url, queue=queue, timeout=0.3) as client:
        with pytest.raises(NoReply):
            await client.create_flow_run(FLOW_ID)


async def test_closing_ends_waiting_calls(producer: Producer, amqp_url: str, queue: str) -> None:
    await producer.channel.declare_queue(queue, auto_delete=True)
    client = FlowRunClient(amqp_url, queue=queue)
    call = asyncio.create_task(client.create_flow_run(FLOW_ID))
    while not await producer.depth():
        await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(BrokerGone):
        await asyncio.wait_for(call, 5)


async def test_many_are_taken_only_as_others_are_answered(shared_worker: Producer, amqp_url: str) -> None:
    taken = 0

    def requests() -> Iterator[dict[str, str]]:
        nonlocal taken
        for _ in range(300):
            taken += 1
            yield {"flow_id": FLOW_ID}

    async with FlowRunClient(amqp_url, queue=shared_worker.queue) as client:
        seen: set[int] = set()
        async for outcome in client.create_many(requests(), concurrency=20):
            assert outcome.created
            seen.add(outcome.index)
            assert taken - len(seen) <= 20
    assert seen == set(range(300))


async def test_blocking_client_works_under_a_running_loop(shared_worker: Producer, amqp_url: str) -> None:
    """As in a notebook, whose own loop runs in the same thread."""
    with SyncClient(amqp_url, queue=shared_worker.queue) as client:
        run = client.create_flow_run(FLOW_ID, idempotency_key="notebook")
        assert client.request({"flow_id": FLOW_ID, "idempotency_key": "notebook"}).status == 200
        outcomes = list(client.create_many([{"flow_id": FLOW_ID}, {"flow_id": "none"}]))
    assert str(run.flow_id) == FLOW_ID
    assert sorted(outcome.status for outcome in outcomes) == [201, 422]


async def test_lost_connection_publishes_the_same_message_again(
    producer: Producer, amqp_url: str, queue: str
) -> None:
    declared = await producer.channel.declare_queue(queue, auto_delete=True)
    async with FlowRunClient(amqp_url, queue=queue) as client:
        call = asyncio.create_task(client.create_flow_run(FLOW_ID))
        while await producer.depth() < 1:
            await asyncio.sleep(0.01)
        link = connection_of(client)
        assert link is not None
        await link.close()
        while await producer.depth() < 2:
            await asyncio.sleep(0.01)
        call.cancel()
    first, again = await declared.get(no_ack=True), await declared.get(no_ack=True)
    assert (first.body, first.message_id, first.correlation_id) == (
        again.body,
        again.message_id,
        again.correlation_id,
    )


# -- refusals by the broker


def add_user(rabbitmq: RabbitMQ, name: str, *, write: str = "^$", read: str = "^$") -> str:
    """A user with these rights and no other; returns the URL to log in with."""
    with suppress(Exception):
        rabbitmq.ctl("delete_user", name)
    rabbitmq.ctl("add_user", name, "password")
    rabbitmq.ctl("set_permissions", name, "^$", write, read)
    return str(URL(rabbitmq.url).with_user(name).with_password("password"))


async def connections(rabbitmq: RabbitMQ, user: str) -> int:
    listed = await asyncio.to_thread(rabbitmq.ctl, "list_connections", "user")
    return listed.split().count(user)


async def test_user_who_may_not_publish_is_told_at_once(rabbitmq: RabbitMQ, queue: str) -> None:
    url = add_user(rabbitmq, "reader", read=".*")
    async with FlowRunClient(url, queue=queue, timeout=5) as client:
        for call in (client.create_flow_run(FLOW_ID), client.publish({"flow_id": FLOW_ID})):
            with pytest.raises(AccessRefused, match=r"ACCESS_REFUSED .*'amq\.default'"):
                await call
        outcomes = [each async for each in client.create_many([{"flow_id": FLOW_ID}] * 100)]
        assert {type(each.error) for each in outcomes} == {AccessRefused}
        assert await connections(rabbitmq, "reader") <= 2
    assert await connections(rabbitmq, "reader") == 0


async def test_user_who_may_not_read_replies_can_still_publish(
    producer: Producer, rabbitmq: RabbitMQ, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some brokers demand a right to read direct replies; a normal queue simulates that."""
    for module in (client_module, connection_module):
        monkeypatch.setattr(module, "DIRECT_REPLY_TO", queue)
    await producer.channel.declare_queue(queue, auto_delete=True)
    async with FlowRunClient(
        add_user(rabbitmq, "writer", write="^amq\\.default$"), queue=queue, timeout=5
    ) as client:
        with pytest.raises(AccessRefused, match="consume replies: ACCESS_REFUSED"):
            await client.create_flow_run(FLOW_ID)
        await client.publish({"flow_id": FLOW_ID})
        assert await producer.depth() == 1


async def test_user_who_may_have_no_channel_is_told(rabbitmq: RabbitMQ, queue: str) -> None:
    url = add_user(rabbitmq, "no-channel", write=".*")
    rabbitmq.ctl("set_user_limits", "no-channel", '{"max-channels": 0}')
    async with FlowRunClient(url, queue=queue, timeout=5) as client:
        with pytest.raises(AccessRefused, match="number of channels"):
            await client.publish({"flow_id": FLOW_ID})
        assert await connections(rabbitmq, "no-channel") == 0


@pytest.mark.parametrize(
    ("headers", "words"),
    [({"CC": "not a list"}, "PRECONDITION_FAILED"), ({"traceparent": "0" * 200_000}, "FRAME_ERROR")],
)
async def test_refused_headers_are_told(
    producer: Producer, amqp_url: str, queue: str, headers: dict[str, Any], words: str
) -> None:
    await producer.channel.declare_queue(queue, auto_delete=True)
    async with FlowRunClient(amqp_url, queue=queue, timeout=5) as client:
        with pytest.raises(MessageRefused, match=words):
            await client.publish({"flow_id": FLOW_ID}, headers=headers)
        await client.publish({"flow_id": FLOW_ID})
    assert await producer.depth() == 1


async def test_message_over_the_brokers_limit_fails_by_itself(
    shared_worker: Producer, rabbitmq: RabbitMQ
) -> None:
    """The broker closes the channel, which all other calls share."""
    url = add_user(rabbitmq, "sender", write=".*", read=".*")
    too_large = {"flow_id": FLOW_ID, "parameters": {"x": "x" * 9000}}
    requests = [too_large if index % 10 == 5 else {"flow_id": FLOW_ID} for index in range(60)]
    # Where RabbitMQ 3.10 and 4 keep the setting.
    limit = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})."
    rabbitmq.ctl("eval", limit.format(8000))
    try:
        async with FlowRunClient(url, queue=shared_worker.queue) as client:
            outcomes = {each.index: each async for each in client.create_many(requests)}
            assert await connections(rabbitmq, "sender") <= 2
    finally:
        rabbitmq.ctl("eval", limit.format(134217728))
    assert len(outcomes) == len(requests)
    for index, outcome in outcomes.items():
        if requests[index] is too_large:
            assert isinstance(outcome.error, MessageRefused)
            assert "larger than configured max size 8000" in str(outcome.error)
        else:
            assert outcome.created, outcome
    records = [each.record.id for each in outcomes.values() if each.record]
    assert len(set(records)) == 54


async def test_full_queue_is_tried_again_and_then_told(producer: Producer, amqp_url: str, queue: str) -> None:
    limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
    declared = await producer.channel.declare_queue(queue, auto_delete=True, arguments=limits)
    async with FlowRunClient(amqp_url, queue=queue, timeout=20) as client:
        first = await client.publish({"flow_id": FLOW_ID})
        for call in (client.publish({"flow_id": FLOW_ID}), client.create_flow_run(FLOW_ID)):
            with pytest.raises(NotTaken, match=f"the queue '{queue}' is full"):
                await call
        waiting = asyncio.create_task(client.publish({"flow_id": FLOW_ID}))
        await asyncio.sleep(0.1)
        assert (await declared.get(no_ack=True)).message_id == first
        second = await waiting
    assert (await declared.get(no_ack=True)).message_id == second


# -- many requests


async def test_outcomes_come_while_the_next_request_is_waited_for(
    shared_worker: Producer, amqp_url: str
) -> None:
    """A source that yields its next request only after the outcome of the last."""
    seen = asyncio.Event()

    async def requests() -> AsyncIterator[dict[str, str]]:
        for _ in range(3):
            yield {"flow_id": FLOW_ID}
            await seen.wait()
            seen.clear()

    async with FlowRunClient(amqp_url, queue=shared_worker.queue) as client, asyncio.timeout(10):
        count = 0
        async for outcome in client.create_many(requests()):
            assert outcome.created
            count += 1
            seen.set()
    assert count == 3


async def test_request_that_cannot_be_written_is_an_outcome(shared_worker: Producer, amqp_url: str) -> None:
    circle: dict[str, Any] = {}
    circle["itself"] = circle
    wrong: list[Any] = [{"flow_id": object()}, {"flow_id": FLOW_ID, "parameters": circle}, "no mapping"]
    async with FlowRunClient(amqp_url, queue=shared_worker.queue) as client:
        outcomes = {each.index: each async for each in client.create_many([*wrong, {"flow_id": FLOW_ID}])}
        (headers_wrong,) = [
            each async for each in client.create_many([{"flow_id": FLOW_ID}], headers={"x": object()})
        ]
        with pytest.raises(ValueError, match="can't be written"):
            await client.request(wrong[0])
    assert outcomes.pop(3).created
    assert [type(each.error) for each in (*outcomes.values(), headers_wrong)] == [NotSerializable] * 4


async def test_many_are_published_and_each_is_confirmed(
    producer: Producer, amqp_url: str, queue: str
) -> None:
    declared = await producer.channel.declare_queue(queue, auto_delete=True)
    requests = [{"flow_id": FLOW_ID, "name": str(n)} for n in range(300)]
    requests[7] = {"flow_id": "none"}
    async with FlowRunClient(amqp_url, queue=queue) as client:
        outcomes = [each async for each in client.publish_many(requests, concurrency=50)]

    def blocking() -> list[PublishOutcome]:
        with SyncClient(amqp_url, queue=queue) as client:
            return list(client.publish_many(iter(requests), concurrency=50))

    outcomes += await asyncio.to_thread(blocking)
    wrong = [each for each in outcomes if each.error]
    assert [(each.index, type(each.error), each.message_id) for each in wrong] == [
        (7, InvalidFlowRun, None)
    ] * 2
    assert all(each.request is requests[each.index] for each in outcomes)
    confirmed = [each.message_id for each in outcomes if each.message_id]
    assert len(set(confirmed)) == 2 * 299
    received = {(await declared.get(no_ack=True)).message_id for _ in confirmed}
    assert received == set(confirmed)


async def test_request_that_expires_becomes_a_dead_letter_with_the_reason(
    amqp_url: str, queue: str, session: Session
) -> None:
    """The queues are a worker's, but there is none: this one has not begun to consume."""
    async with FlowRunClient(amqp_url, queue=queue) as client:
        with pytest.raises(NoReply, match="served until it expires, or if a worker has taken it"):
            await client.create_flow_run(FLOW_ID, timeout=0.5, expires="timeout")
        await client.publish({"flow_id": FLOW_ID}, expires=0.5)
        await client.publish({"flow_id": FLOW_ID}, expires=3600)
    async with Producer(amqp_url, queue) as producer, asyncio.timeout(60):
        while await producer.depth(f"{queue}.dead") < 2:
            await asyncio.sleep(0.05)
        assert await producer.depth() == 1
    listed = await command("dead-letters", "list", "--letters", amqp_url=amqp_url, queue=queue)
    assert listed.out.count("it expired before a worker took it") == 2, listed.out


async def test_error_of_the_source_is_raised(shared_worker: Producer, amqp_url: str) -> None:
    async def requests() -> AsyncIterator[dict[str, str]]:
        yield {"flow_id": FLOW_ID}
        raise LookupError("the source")

    async with FlowRunClient(amqp_url, queue=shared_worker.queue) as client:
        with pytest.raises(LookupError, match="the source"):
            async for _ in client.create_many(requests()):
                pass


def test_blocking_client_gives_outcomes_while_the_source_is_slow(
    shared_worker: Producer, amqp_url: str
) -> None:
    answered: list[float] = []

    def requests() -> Iterator[dict[str, str]]:
        for _ in range(4):
            yield {"flow_id": FLOW_ID}
            time.sleep(0.5)

    with SyncClient(amqp_url, queue=shared_worker.queue) as client:
        started = time.monotonic()
        for outcome in client.create_many(requests()):
            assert outcome.created
            answered.append(time.monotonic() - started)
    assert answered[0] < 1.5
    assert len(answered) == 4


# -- headers, and who made the run


async def test_headers_reach_the_worker(shared_worker: Producer, amqp_url: str) -> None:
    headers = {"x-prefect-api-version": "no version"}
    async with FlowRunClient(amqp_url, queue=shared_worker.queue) as client:
        with pytest.raises(FlowRunRefused) as refused:
            await client.create_flow_run(FLOW_ID, headers=headers, name="with headers", check=False)
        many = client.create_many([{"flow_id": FLOW_ID}], headers=headers, check=False)
        (outcome,) = [each async for each in many]
    with SyncClient(amqp_url, queue=shared_worker.queue) as blocking:
        with pytest.raises(FlowRunRefused):
            blocking.create_flow_run(FLOW_ID, headers=headers, check=False)
        (another,) = blocking.create_many([{"flow_id": FLOW_ID}], headers=headers, check=False)
    assert [refused.value.status, outcome.status, another.status] == [400, 400, 400]


# -- the ways in which a connection ends


class LastWords:
    """A network that holds back the broker's bytes, and delivers them together with the
    connection's end.

    Attributes:
        kept: the broker's bytes since then.
        asked: set when the client has sent bytes that no longer reach the broker.
    """

    def __init__(self, port: int) -> None:
        self._broker = port
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.kept = b""
        self.asked = asyncio.Event()
        self.pass_all()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pass_all(self) -> None:
        self._up.set()
        self._down.set()

    def keep_answers(self) -> None:
        self._down.clear()

    def keep_questions(self) -> None:
        self._up.clear()

    def end(self) -> None:
        """Deliver the kept bytes, and close; the next connection is served."""
        for task in self._tasks:
            task.cancel()
        self._client.write(self.kept)
        self._client.close()
        self.pass_all()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._broker)
        self._client = writer
        self._tasks = [
            asyncio.create_task(self._pass_up(reader, there)),
            asyncio.create_task(self._pass_down(there_reader, writer)),
        ]

    async def _pass_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if not self._up.is_set():
                    self.asked.set()
                    await self._up.wait()
                writer.write(data)
        finally:
            writer.close()

    async def _pass_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self._down.is_set():
                writer.write(data)
            else:
                self.kept += data


def through(url: str, port: int, **query: str) -> str:
    return str(URL(url).with_port(port).update_query(query))


async def test_end_of_the_connection_that_is_read_with_its_last_frames_is_a_loss(
    shared_worker: Producer, rabbitmq: RabbitMQ
) -> None:
    """aiormq then ends waiting publications with a bare Exception."""
    async with (
        LastWords(rabbitmq.port) as network,
        FlowRunClient(through(rabbitmq.url, network.port), queue=shared_worker.queue) as client,
        asyncio.timeout(20),
    ):
        await client.create_flow_run(FLOW_ID)
        network.keep_answers()
        answered = [asyncio.create_task(client.request({"flow_id": FLOW_ID})) for _ in range(30)]
        while network.kept.count(b"flow-run-worker") < 30:
            await asyncio.sleep(0.01)
        network.keep_questions()
        asked = asyncio.create_task(client.request({"flow_id": FLOW_ID}))
        await network.asked.wait()
        network.end()
        outcomes = await asyncio.gather(*answered, asked)
    assert all(each.created for each in outcomes)


async def test_connections_that_are_lost_again_and_again_are_not_opened_without_a_pause(
    producer: Producer, rabbitmq: RabbitMQ, queue: str
) -> None:
    """The shortest pause is 50 milliseconds."""
    await producer.channel.declare_queue(queue, auto_delete=True)
    async with (
        Proxy([rabbitmq.port]) as network,
        FlowRunClient(through(rabbitmq.url, network.port), queue=queue) as client,
    ):
        call = asyncio.create_task(client.request({"flow_id": FLOW_ID}))
        losses = 0
        until = time.monotonic() + 1
        while time.monotonic() < until:
            link = connection_of(client)
            if link is not None and not link.channel.is_closed:
                network.cut()
                losses += 1
                while not link.channel.is_closed:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
        call.cancel()
    assert 1 < losses <= 21


async def test_own_run_that_is_found_after_a_lost_connection_counts_as_created(
    shared_worker: Producer, rabbitmq: RabbitMQ
) -> None:
    """Without an idempotency key: with one, the run may be another caller's."""
    async with (
        LastWords(rabbitmq.port) as network,
        FlowRunClient(through(rabbitmq.url, network.port), queue=shared_worker.queue) as client,
        asyncio.timeout(20),
    ):
        await client.create_flow_run(FLOW_ID)
        network.keep_answers()
        calls = [
            asyncio.create_task(client.request({"flow_id": FLOW_ID, **key}))
            for key in ({}, {"idempotency_key": "after a loss"})
        ]
        while network.kept.count(b"flow-run-worker") < 2:
            await asyncio.sleep(0.01)
        network.kept = b""
        network.end()
        without_key, with_key = await asyncio.gather(*calls)
    assert (without_key.status, without_key.created) == (200, True)
    assert (with_key.status, with_key.created) == (200, False)


async def test_missed_heartbeats_are_a_loss_and_no_cancellation(
    shared_worker: Producer, rabbitmq: RabbitMQ
) -> None:
    """aiormq then ends waiting publications with a CancelledError without a cancellation."""
    async with (
        Proxy([rabbitmq.port]) as network,
        FlowRunClient(
            through(rabbitmq.url, network.port, heartbeat="1"), queue=shared_worker.queue
        ) as client,
        asyncio.timeout(40),
    ):
        await client.create_flow_run(FLOW_ID)
        network.silence()
        calls = [asyncio.create_task(client.request({"flow_id": FLOW_ID})) for _ in range(3)]
        link = connection_of(client)
        assert link is not None
        while not link.channel.is_closed:
            await asyncio.sleep(0.05)
        network.speak()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each).__name__ for each in outcomes] == ["CreateOutcome"] * 3


async def test_closing_ends_calls_that_are_being_published(
    producer: Producer, rabbitmq: RabbitMQ, queue: str
) -> None:
    await producer.channel.declare_queue(queue, auto_delete=True)
    async with LastWords(rabbitmq.port) as network:
        client = FlowRunClient(through(rabbitmq.url, network.port), queue=queue)
        await client.publish({"flow_id": FLOW_ID})
        network.keep_questions()
        calls = [asyncio.create_task(client.publish({"flow_id": FLOW_ID})) for _ in range(3)]
        await network.asked.wait()
        async with asyncio.timeout(10):
            await client.close()
            ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each).__name__ for each in ended] == ["BrokerGone"] * 3


async def test_closing_ends_calls_that_wait_for_a_connection() -> None:
    """As behind a firewall that drops packets: connecting takes up to 10 seconds."""
    async with Proxy([]) as network:
        network.silence()
        url = f"amqp://guest:guest@127.0.0.1:{network.port}/"
        client, blocking = FlowRunClient(url), SyncClient(url)
        calls = [asyncio.create_task(client.publish({"flow_id": FLOW_ID})) for _ in range(3)]
        calls += [asyncio.create_task(asyncio.to_thread(blocking.publish, {"flow_id": FLOW_ID}))]
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            await client.close()
            await asyncio.to_thread(blocking.close)
            ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each).__name__ for each in ended] == ["BrokerGone"] * 4


async def test_cancelling_a_call_that_is_being_published_is_a_cancellation(
    producer: Producer, rabbitmq: RabbitMQ, queue: str
) -> None:
    """Even if the connection ends at that moment."""
    await producer.channel.declare_queue(queue, auto_delete=True)
    async with (
        LastWords(rabbitmq.port) as network,
        FlowRunClient(through(rabbitmq.url, network.port), queue=queue) as client,
    ):
        await client.publish({"flow_id": FLOW_ID})
        network.keep_questions()
        call = asyncio.create_task(client.publish({"flow_id": FLOW_ID}))
        await network.asked.wait()
        network.end()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
