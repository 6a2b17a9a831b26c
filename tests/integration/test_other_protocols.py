"""Producers that use STOMP or AMQP 1.0, beside those with AMQP 0-9-1."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self
from uuid import uuid4

import pytest

from tests.conftest import StartWorker
from tests.support import amqp10
from tests.support.processes import free_ports
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ

BODY = json.dumps({"flow_id": str(uuid4())}).encode()
STOMP, AMQP_1_0 = "rabbitmq_stomp", "rabbitmq_amqp1_0"


@pytest.fixture(scope="module")
def stomp_port() -> int:
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="module")
def rabbitmq(stomp_port: int) -> Iterator[RabbitMQ]:
    settings = {"stomp.listeners.tcp.1": f"127.0.0.1:{stomp_port}", "amqp1_0.default_user": "guest"}
    with RabbitMQ(plugins=[STOMP, AMQP_1_0], settings=settings) as node:
        yield node


class Stomp:
    """A STOMP client: frames of a command, headers and a body."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.send("CONNECT", {"login": "guest", "passcode": "guest", "accept-version": "1.2"})
        assert (await self.receive())[0] == "CONNECTED"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    def send(self, command: str, headers: dict[str, str], body: bytes = b"") -> None:
        lines = [command, *(f"{name}:{value}" for name, value in headers.items()), "", ""]
        self._writer.write("\n".join(lines).encode() + body + b"\0")

    async def receive(self) -> tuple[str, dict[str, str], bytes]:
        async with asyncio.timeout(120):
            head = await self._reader.readuntil(b"\n\n")
            command, *lines = head.decode().strip().splitlines()
            headers = dict(line.split(":", 1) for line in lines)
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
            assert await self._reader.readexactly(1) == b"\0"
            await self._reader.read(1)  # the line break after it
        return command, headers, body


@pytest.fixture
async def stomp(stomp_port: int) -> AsyncIterator[Stomp]:
    async with Stomp(stomp_port) as client:
        yield client


@pytest.mark.parametrize("body", [BODY, b'{"flow_id": 1}'], ids=["good", "refused"])
async def test_a_reply_finds_the_queue_of_an_address_and_shows_its_status(
    start_worker: StartWorker, stomp: Stomp, producer: Producer, sqlite_url: str, body: bytes
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    good = body == BODY
    addresses = ("/queue/{}", "/amq/queue/{}", "/queues/{}", "{}")
    for address in addresses:
        name = f"{producer.queue}-replies"
        if address != "{}":  # STOMP escapes these
            name += f"/of {len(address)}"
        await producer.channel.declare_queue(name, auto_delete=True)
        escaped = name.replace("/", "%2F")
        stomp.send("SUBSCRIBE", {"id": name, "destination": f"/amq/queue/{escaped}"})
        reply_to = address.format(escaped)
        if address == "/queues/{}":  # the adapter refuses these
            await producer.publish(body, reply_to=reply_to, correlation_id=address)
        else:
            headers = {"destination": f"/amq/queue/{producer.queue}", "content-type": "application/json"}
            stomp.send("SEND", {**headers, "correlation-id": address, "reply-to": reply_to}, body)
        command, headers, answer = await stomp.receive()
        assert (command, headers.get("correlation-id")) == ("MESSAGE", address), (headers, answer)
        assert headers["status"] == ("201" if good else "422")
        assert ("x-error" in headers) is not good
        assert bool(json.loads(answer).get("id")) is good
    assert await asyncio.to_thread(worker.terminate) == 0, worker.output
    assert "reply_unroutable" not in worker.output
    assert await producer.depth() == 0
    assert await producer.depth(f"{producer.queue}.dead") == (0 if good else len(addresses))


async def test_an_address_of_no_queue_is_given_up_once_and_costs_nobody(
    start_worker: StartWorker, producer: Producer, sqlite_url: str
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    made_up = "amq.rabbitmq.reply-to.g1h2AAA.AAAA"
    for reply_to in ("/queue/nobody", "/queue//queue/nobody", "/queues/", f"/queue/{made_up}"):
        await producer.publish(BODY, reply_to=reply_to)
    assert (await producer.request(BODY)).status == 201
    assert await asyncio.to_thread(worker.terminate) == 0
    assert worker.output.count("reply_unroutable") == 4
    assert "session_lost" not in worker.output
    assert await producer.depth() == 0


async def test_what_reply_to_may_not_name_it_may_not_name_as_an_address(
    start_worker: StartWorker, producer: Producer, sqlite_url: str
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url, reply_to_pattern="(/queue/)?(mine|test).*")
    await producer.channel.declare_queue("mine", auto_delete=True)
    refused = ["/queue/theirs", "/amq/queue/mine"]
    refused += [f"/queue/{producer.queue}{suffix}" for suffix in ("", ".dead", ".events")]
    for reply_to in ("/queue/mine", *refused):
        await producer.publish(BODY, reply_to=reply_to)
    letters = await producer.dead_letters(len(refused))
    assert {letter.headers["x-error-status"] for letter in letters} == {400}
    assert await asyncio.to_thread(worker.terminate) == 0


async def test_a_message_of_amqp_1_0_is_served_and_a_value_section_is_told_from_it(
    start_worker: StartWorker, producer: Producer, rabbitmq: RabbitMQ, sqlite_url: str
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    mine = amqp10.properties(reply_to=producer.reply_to, correlation_id=amqp10.text("mine"))
    value = amqp10.properties(reply_to=producer.reply_to, correlation_id=amqp10.text("a value"))
    sequence = amqp10.properties(reply_to=producer.reply_to, correlation_id=amqp10.text("a sequence"))
    await amqp10.send(
        rabbitmq.port,
        producer.queue,
        [
            mine + amqp10.described(amqp10.DATA, amqp10.binary(BODY)),
            value + amqp10.described(amqp10.VALUE, amqp10.text(BODY.decode())),
            sequence + amqp10.described(amqp10.SEQUENCE, amqp10.listed(amqp10.text(BODY.decode()))),
        ],
    )
    served, *refused = await producer.replies_to(["mine", "a value", "a sequence"])
    assert served.status == 201
    for each in refused:
        assert each.status in (400, 422)
        assert "data section" in each.headers["x-error"]
    letters: list[Any] = await producer.dead_letters(2)
    assert all("data section" in letter.headers["x-error"] for letter in letters)
    assert await asyncio.to_thread(worker.terminate) == 0
