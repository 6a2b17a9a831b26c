"""The broker closes a channel or a connection over a publication, with any error. Each costs at
most one session and is then given up, and delays no other request.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from uuid import uuid4

import pamqp.frame
import pytest
from pamqp import commands as spec
from yarl import URL

from tests.conftest import StartWorker
from tests.support.processes import wait_until
from tests.support.producer import Producer
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ

FLOW_ID = str(uuid4())
MARK = b"closes-it"
GOOD = 100
# The kinds of close: a channel's error, a connection's error, or no error at all.
CONNECTION_ERRORS = {501: "FRAME_ERROR", 502: "SYNTAX_ERROR", 503: "COMMAND_INVALID", 541: "INTERNAL_ERROR"}
CHANNEL_ERRORS = {403: "ACCESS_REFUSED", 406: "PRECONDITION_FAILED"}
WAYS: list[int | None] = [*CHANNEL_ERRORS, *CONNECTION_ERRORS, 530, None]
# The worker's channel on a publishing connection.
CHANNEL = 1
CLOSE_OK = pamqp.frame.marshal(spec.Channel.CloseOk(), CHANNEL)


class Closing(Proxy):
    """A proxy before a broker, which closes the channel or connection of a marked publication."""

    def __init__(self, port: int) -> None:
        super().__init__([port])
        self.way: int | None = None
        self._closed: set[asyncio.StreamWriter] = set()

    def from_client(self, data: bytes, client: asyncio.StreamWriter) -> bytes:
        if client in self._closed:
            # A broker takes nothing after its close. The worker may have written publications
            # behind its close-ok: their confirms would count for those swallowed here.
            if CLOSE_OK in data:
                client.transport.abort()
            return b""
        if MARK not in data:
            return data
        self._closed.add(client)
        if self.way is None:
            client.transport.abort()
        elif self.way in CHANNEL_ERRORS:
            close = spec.Channel.Close(self.way, f"{CHANNEL_ERRORS[self.way]} - by the test", 60, 40)
            client.write(pamqp.frame.marshal(close, CHANNEL))
        else:
            text = f"{CONNECTION_ERRORS.get(self.way, 'NOT_ALLOWED')} - by the test"
            client.write(pamqp.frame.marshal(spec.Connection.Close(self.way, text, 60, 40), 0))
        return b""


@pytest.fixture
async def closing(rabbitmq: RabbitMQ) -> AsyncIterator[Closing]:
    async with Closing(rabbitmq.port) as proxy:
        yield proxy


@pytest.mark.parametrize("good", [True, False], ids=["a reply", "a reply and a dead letter"])
async def test_each_costs_one_session_at_the_most_and_nobody_an_answer(
    start_worker: StartWorker,
    producer: Producer,
    closing: Closing,
    amqp_url: str,
    sqlite_url: str,
    good: bool,
) -> None:
    url = str(URL(amqp_url).with_port(closing.port))
    worker = await asyncio.to_thread(start_worker, sqlite_url, amqp_url=url)
    # Before its first answer, a worker takes ACCESS_REFUSED for a missing permission, and exits.
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201
    ids: list[str] = []
    for number, way in enumerate(WAYS, start=1):
        closing.way = way
        body = {"flow_id": FLOW_ID if good else number}
        marked = f"{MARK.decode()}-{number}"
        sent = [producer.publish({"flow_id": FLOW_ID, "name": f"{number} {n}"}) for n in range(2 * GOOD)]
        sent.insert(GOOD, producer.publish(body, correlation_id=marked))
        published = await asyncio.gather(*sent)
        ids += [each for each in published if each != marked]
        assert {reply.status for reply in await producer.replies_to(ids)} <= {200, 201}

        def given_up(number: int = number) -> bool:
            return worker.output.count("the broker closes the connection over it") >= number * (
                1 if good else 2
            )

        await asyncio.to_thread(wait_until, given_up, f"{marked}, closed with {way}, is given up", 120)
        assert worker.output.count("session_lost") <= number, f"{way}: {worker.output[-3000:]}"
    letters = [] if good else await producer.dead_letters(len(WAYS))
    assert {letter.headers["x-first-death-reason"] for letter in letters} <= {"rejected"}
    assert sorted(json.loads(letter.raw)["flow_id"] for letter in letters) == (
        [] if good else list(range(1, len(WAYS) + 1))
    )
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201
    assert await asyncio.to_thread(worker.terminate) == 0
    assert await producer.depth() == 0
    assert "Traceback" not in worker.output
