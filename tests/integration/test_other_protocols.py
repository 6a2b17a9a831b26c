"""Producers that use STOMP or AMQP 1.0, beside those with AMQP 0-9-1."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pytest

from tests.conftest import StartWorker
from tests.support.amqp10 import AMQP10Producer
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
    settings = {"stomp.listeners.tcp.1": f"127.0.0.1:{stomp_port}"}
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


async def test_stomp_names_a_kind_of_request_and_a_message(
    start_worker: StartWorker, stomp: Stomp, producer: Producer, sqlite_url: str
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    replies = f"{producer.queue}-replies"
    stomp.send("SUBSCRIBE", {"id": "0", "destination": f"/queue/{replies}"})
    common = {"destination": f"/amq/queue/{producer.queue}", "reply-to": f"/queue/{replies}"}
    once = {**common, "amqp-message-id": "order-4711"}
    kind = {**common, "type": "create_flow_run_from_deployment"}
    for headers, body in ((once, BODY), (once, BODY), (kind, b'{"deployment_name": "a/b"}')):
        stomp.send("SEND", headers, body)
    answers = [await stomp.receive() for _ in range(3)]
    by_status = {headers["status"]: (headers, json.loads(body)) for _, headers, body in answers}
    assert by_status.keys() == {"201", "200", "404"}
    assert by_status["200"][1]["id"] == by_status["201"][1]["id"]
    assert (by_status["201"][0]["type"], by_status["404"][0]["type"]) == ("flow_run", "error")
    assert await asyncio.to_thread(worker.terminate) == 0


async def test_amqp_1_0_gets_its_reply_and_must_send_a_data_section(
    start_worker: StartWorker, producer: Producer, rabbitmq: RabbitMQ, sqlite_url: str, tmp_path: Path
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    sender = await asyncio.to_thread(AMQP10Producer, tmp_path, rabbitmq.port)
    replies = f"{producer.queue}-replies"
    await producer.channel.declare_queue(replies, auto_delete=True)
    good = {"text": BODY.decode()}
    cases: dict[str, dict[str, Any]] = {
        "by address": good,
        "by name": {**good, "reply_to": replies},
        "refused": {"text": '{"flow_id": 1}'},
        "value": {**good, "section": "value"},
        "sequence": {**good, "section": "sequence"},
        "once": {**good, "message_id": "order-4711"},
    }
    messages = [
        {"correlation_id": name, **({} if "reply_to" in case else {"reply_to_queue": replies}), **case}
        for name, case in (*cases.items(), ("once", cases["once"]))
    ]
    answers = await sender.send(producer.queue, messages, source=replies, replies=len(messages))
    bodies = {answer["correlation_id"]: json.loads(answer["text"]) for answer in answers}
    served = {name for name, body in bodies.items() if "id" in body}
    assert served == {"by address", "by name", "once"}
    assert len({json.loads(answer["text"]).get("id") for answer in answers} - {None}) == len(served)
    assert {answer["content_type"] for answer in answers} == {"application/json"}
    letters: list[Any] = await producer.dead_letters(3)
    assert sum("data section" in letter.headers["x-error"] for letter in letters) == 2
    if rabbitmq.ctl("version").strip() < "4":  # the plug-in of RabbitMQ 3 drops the headers
        assert not any("application_properties" in answer for answer in answers)
    else:
        statuses = [answer["application_properties"]["status"] for answer in answers]
        assert sorted(statuses) == [200, 201, 201, 201, 400, 422, 422]
        for answer in answers:
            annotations = answer["message_annotations"]
            assert ("x-error" in annotations) == (answer["correlation_id"] not in served)
            assert annotations["x-basic-type"] == ("error" if "x-error" in annotations else "flow_run")
    assert await asyncio.to_thread(worker.terminate) == 0


async def test_amqp_1_0_names_a_kind_of_request_on_rabbitmq_4(
    start_worker: StartWorker, producer: Producer, rabbitmq: RabbitMQ, sqlite_url: str, tmp_path: Path
) -> None:
    if rabbitmq.ctl("version").strip() < "4":
        pytest.skip("a type cannot be sent by AMQP 1.0 to RabbitMQ 3")
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    sender = await asyncio.to_thread(AMQP10Producer, tmp_path, rabbitmq.port)
    message = {
        "text": '{"deployment_name": "a/b"}',
        "message_annotations": {"x-basic-type": "create_flow_run_from_deployment"},
        "application_properties": {"x-prefect-api-version": "0.8.4"},
    }
    await sender.send(producer.queue, [message])
    (letter,) = await producer.dead_letters(1)
    assert letter.headers["x-error-status"] == 404
    assert letter.type == "create_flow_run_from_deployment"
    assert await asyncio.to_thread(worker.terminate) == 0
