"""The emitter with a real broker and a fake API, for behaviour that Prefect's own does not show on
demand. ``tests/conformance/test_events.py`` uses Prefect's own.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aiohttp import web
from yarl import URL

from tests.support.certificates import Authority
from tests.support.command import command
from tests.support.processes import free_ports
from tests.support.producer import Producer
from worker.amqp.transport import Connection
from worker.broker.connection import close_quietly, connect
from worker.broker.login import login_of
from worker.broker.messages import events_message
from worker.broker.session import Session
from worker.broker.topology import Topology
from worker.events.emitter import Emitter
from worker.events.patience import PATIENCE, Patience
from worker.observability import metrics
from worker.observability.metrics import readiness
from worker.settings import Settings


class API:
    """Accepts events, and refuses on demand.

    Attributes:
        taken: the ids of the events that were answered 204.
        answer: the status for a request with these events; a float is a time to stay silent.
        port: where it listens, also while it is away.
    """

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.answer: Callable[[list[Any], web.Request], int | float] = lambda events, request: 204
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.requests = 0
        self.under_way = 0
        self.most_under_way = 0

    async def _events(self, request: web.Request) -> web.Response:
        self.requests += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            events = json.loads(await request.read())
            await asyncio.sleep(0.01)
            answer = self.answer(events, request)
            if isinstance(answer, float):
                await asyncio.sleep(answer)
                answer = 503
            if answer == 204:
                self.taken += [each["id"] for each in events]
                return web.Response(status=204)
            detail = [{"loc": ["body", 0, "event"], "msg": "too long", "type": "value_error"}]
            return web.json_response({"exception_detail": detail}, status=answer)
        finally:
            self.under_way -= 1

    @asynccontextmanager
    async def serve(self, context: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        app = web.Application(client_max_size=10**8)
        app.router.add_post("/api/events", self._events)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=context).start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def has_taken(self, ids: list[str]) -> None:
        """Wait until it has taken these events."""
        async with asyncio.timeout(120):
            while set(ids) - set(self.taken):
                await asyncio.sleep(0.02)


async def refused() -> str:
    """Wait until events are held again; returns the reason."""
    readiness.events = None
    async with asyncio.timeout(120):
        while readiness.events is None:
            await asyncio.sleep(0.02)
        return readiness.events


Outbox = Callable[..., Any]


@pytest.fixture
def settings(amqp_url: str, queue: str, api: API) -> Settings:
    return Settings(
        amqp_url=amqp_url, queue=queue, prefect_api_url=api.url, prefect_events_per_second=10_000.0
    )


@pytest.fixture
def api() -> API:
    return API()


@pytest.fixture
async def put(amqp_url: str, settings: Settings) -> AsyncIterator[Outbox]:
    """Puts this many events into the outbox as one message; returns their ids."""
    session = await Session.open(amqp_url, Topology.of(settings.queue_names), name="test")

    async def put(count: int, **fields: Any) -> list[str]:
        ids = [str(uuid4()) for _ in range(count)]
        events = [json.dumps({"id": each, **fields}).encode() for each in ids]
        confirmation = await session.publisher.publish(
            [events_message(settings.queue_names.events_queue, events, await session.login())]
        )
        await confirmation.wait()
        assert confirmation.all_taken
        return ids

    yield put
    await session.close()


@asynccontextmanager
async def emitting(settings: Settings, patience: Patience = PATIENCE) -> AsyncIterator[None]:
    emitter = Emitter(settings, Topology.of(settings.queue_names), patience)
    emitter.start()
    try:
        yield
    finally:
        await emitter.stop()


async def empty(producer: Producer, settings: Settings) -> None:
    """Assert that nothing is left in the outbox; a deleted queue reports its whole length."""
    deleted = await producer.channel.queue_delete(settings.queue_names.events_queue)
    assert deleted.message_count == 0


async def test_events_go_in_their_order_one_request_at_a_time(
    api: API, settings: Settings, put: Outbox, producer: Producer
) -> None:
    ids = [each for count in (1, 200, 1, 1, 3) * 10 for each in await put(count)]
    async with api.serve(), emitting(settings):
        await api.has_taken(ids)
    assert api.taken == ids
    assert api.most_under_way == 1
    assert api.requests < 50  # events of small messages share requests
    await empty(producer, settings)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503, 200, 302])
async def test_what_may_pass_is_waited_out(
    api: API, settings: Settings, put: Outbox, producer: Producer, status: int
) -> None:
    answers = iter((status, status))
    api.answer = lambda events, request: next(answers, 204)
    ids = await put(3)
    async with api.serve(), emitting(settings):
        reason = await refused()
        assert f"answers {status}" in reason
        await api.has_taken(ids)
        async with asyncio.timeout(60):
            while readiness.events is not None:
                await asyncio.sleep(0.02)
    assert api.taken == ids
    await empty(producer, settings)
    assert await producer.depth(settings.queue_names.dead_letter_queue) == 0


async def test_an_api_that_is_away_or_silent_is_waited_for(
    api: API, settings: Settings, put: Outbox, producer: Producer
) -> None:
    ids = await put(2)
    async with emitting(settings, Patience(answer=0.3)):
        assert "No answer from http://127.0.0.1" in await refused()
        ids += await put(2)
        silent = iter((2.0, 2.0))
        api.answer = lambda events, request: next(silent, 204)
        async with api.serve():
            await api.has_taken(ids)
        ids += await put(1)
        await refused()
        async with api.serve():
            await api.has_taken(ids)
    assert sorted(api.taken) == sorted(ids)
    await empty(producer, settings)


@pytest.mark.parametrize("status", [413, 422])
async def test_a_bad_event_is_set_aside_alone_and_can_be_sent_again(
    api: API, settings: Settings, put: Outbox, producer: Producer, amqp_url: str, status: int
) -> None:
    mended = False

    def answer(events: list[Any], request: web.Request) -> int:
        return status if any("bad" in each for each in events) and not mended else 204

    api.answer = answer
    good = [*await put(5), *await put(70)]
    bad = await put(1, bad=True)
    good += await put(9)
    async with api.serve():
        async with emitting(settings):
            await api.has_taken(good)
        assert sorted(api.taken) == sorted(good)
        (letter,) = await producer.dead_letters(1)
        assert letter.body == {"id": bad[0], "bad": True}
        assert letter.headers["x-error-status"] == status
        assert letter.headers["x-error"] == f"Prefect's API answers {status}: body.0.event: too long"
        assert letter.headers["x-failed-at"]
        assert (letter.type, letter.content_type) == ("prefect_event", "application/json")
        # Back among the dead letters, and from there to the outbox.
        message = aio_pika.Message(
            letter.raw,
            headers=letter.headers,
            type=letter.type,
            app_id=letter.app_id,
            user_id="guest",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await producer.channel.default_exchange.publish(message, f"{producer.queue}.dead")
        mended = True
        replayed = await command("dead-letters", "replay", "--all", amqp_url=amqp_url, queue=producer.queue)
        assert replayed.code == 0, replayed.err
        async with emitting(settings):
            await api.has_taken(bad)
    assert await producer.depth(settings.queue_names.dead_letter_queue) == 0
    assert await producer.depth() == 0
    await empty(producer, settings)


@pytest.mark.parametrize("status", [400, 403, 500, 0.6])
async def test_an_event_over_which_the_api_fails_while_it_takes_others_is_set_aside(
    api: API,
    settings: Settings,
    put: Outbox,
    producer: Producer,
    status: int | float,
) -> None:
    """While it is the only one, it waits: the fault may be the API's."""
    api.answer = lambda events, request: status if any("bad" in each for each in events) else 204
    bad = await put(1, bad=True)
    async with api.serve(), emitting(settings, Patience(answer=0.3, tries_together=2, pause=0.1)):
        await refused()
        async with asyncio.timeout(120):
            while api.requests < 5:
                await asyncio.sleep(0.02)
        assert await producer.depth(settings.queue_names.dead_letter_queue) == 0
        good = await put(3)
        bad += await put(1, bad=True)
        good += await put(4)
        letters = await producer.dead_letters(2)
        await api.has_taken(good)
    assert sorted(letter.body["id"] for letter in letters) == sorted(bad)
    for letter in letters:
        assert letter.headers["x-error-status"] == (status if isinstance(status, int) else 504)
        assert letter.headers["x-error"].endswith("(and it takes others)")
    assert set(api.taken) == set(good)
    await empty(producer, settings)


async def test_an_api_that_fails_over_every_event_is_waited_for_and_none_is_set_aside(
    api: API, settings: Settings, put: Outbox, producer: Producer
) -> None:
    """Even if it fails again while the events are tried in parts."""
    # By the number of the request.
    fails = {*range(1, 12), *range(13, 40), 41, 43}
    api.answer = lambda events, request: 500 if api.requests in fails else 204
    ids = [each for count in (1, 2, 5) for each in await put(count)]
    async with api.serve(), emitting(settings, Patience(tries_together=2, pause=0.1)):
        await api.has_taken(ids)
        ids += await put(2)
        await api.has_taken(ids)
    assert set(api.taken) == set(ids)
    assert await producer.depth(settings.queue_names.dead_letter_queue) == 0
    await empty(producer, settings)


async def test_what_is_no_list_becomes_a_dead_letter_and_harms_no_other(
    api: API, settings: Settings, put: Outbox, producer: Producer
) -> None:
    def answer(events: list[Any], request: web.Request) -> int:
        return 204 if all("id" in each for each in events) else 422

    api.answer = answer
    good = await put(2)
    persistent = aio_pika.DeliveryMode.PERSISTENT
    message = aio_pika.Message(b'[{"no": "id"}]', delivery_mode=persistent, user_id="guest")
    await producer.channel.default_exchange.publish(message, settings.queue_names.events_queue)
    good += await put(2)
    async with api.serve(), emitting(settings):
        await api.has_taken(good)
        (letter,) = await producer.dead_letters(1)
    assert letter.body == {"no": "id"}
    await empty(producer, settings)


async def test_one_emitter_at_a_time_and_another_takes_over(
    api: API, settings: Settings, put: Outbox, producer: Producer
) -> None:
    async with api.serve(), emitting(settings):
        async with emitting(settings):
            ids = [each for _ in range(20) for each in await put(10)]
            await api.has_taken(ids)
            assert len(api.taken) == len(ids)
            assert api.most_under_way == 1
        ids += await put(10)
        await api.has_taken(ids)
    assert sorted(api.taken) == sorted(ids)
    await empty(producer, settings)


async def test_the_auth_string_is_sent(api: API, settings: Settings, put: Outbox) -> None:
    wanted = "Basic YWRtaW46cMOkc3M6d29yZA=="  # admin:päss:word

    def answer(events: list[Any], request: web.Request) -> int:
        return 204 if request.headers.get("Authorization") == wanted else 401

    api.answer = answer
    ids = await put(1)
    async with api.serve():
        async with emitting(settings):
            assert "WORKER_PREFECT_API_AUTH_STRING" in await refused()
        login = settings.model_copy(update={"prefect_api_auth_string": "admin:päss:word"})
        async with emitting(login):
            await api.has_taken(ids)


async def test_https_is_verified_by_the_file_of_certificates(
    api: API, settings: Settings, put: Outbox, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "authority")
    issued = authority.issue("server", host="localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(issued.certificate, issued.key)
    url = f"https://localhost:{api.port}/api"
    ids = await put(1)
    async with api.serve(context):
        async with emitting(settings.model_copy(update={"prefect_api_url": url})):
            assert "certificate verify failed" in await refused()
        trusting = {"prefect_api_url": url, "prefect_api_cafile": str(authority.certificate)}
        async with emitting(settings.model_copy(update=trusting)):
            await api.has_taken(ids)
    assert api.taken == ids


async def test_the_outbox_shows_its_age_and_number(
    api: API, settings: Settings, put: Outbox, producer: Producer
) -> None:
    await put(1)
    await put(2)
    async with emitting(settings):
        await refused()
        async with asyncio.timeout(120):
            while metrics.outbox_age.collect()[0].samples[0].value < 1:
                await asyncio.sleep(0.1)
            while metrics.outbox_messages.collect()[0].samples[0].value != 2:
                await asyncio.sleep(0.1)
    assert metrics.outbox_age.collect()[0].samples[0].value == 0


async def forge(url: str, queue: str, **properties: Any) -> str:
    """Publish an event without the worker; returns its id."""
    event_id = str(uuid4())
    async with await aio_pika.connect(url) as connection:
        body = json.dumps([{"id": event_id, "event": "prefect.flow-run.Completed"}]).encode()
        message = aio_pika.Message(body, headers={"events": 1}, app_id="flow-run-worker", **properties)
        channel = await connection.channel()
        await channel.default_exchange.publish(message, queue, mandatory=True)
    return event_id


async def test_an_event_of_no_worker_is_set_aside_and_reaches_nobody(
    api: API, settings: Settings, put: Outbox, producer: Producer, other_user: str
) -> None:
    outbox, user = settings.queue_names.events_queue, URL(other_user).user
    ids = await put(2)
    await forge(other_user, outbox)
    await forge(other_user, outbox, user_id=user)
    ids += await put(2)
    counted = metrics.events_total.labels("forged")._value.get()
    async with api.serve(), emitting(settings):
        await api.has_taken(ids)
        letters = await producer.dead_letters(2)
    assert api.taken == ids
    assert [letter.headers["x-error-status"] for letter in letters] == [403, 403]
    reasons = [letter.headers["x-error"] for letter in letters]
    assert all("No event of a worker" in reason for reason in reasons)
    assert f"'{user}'" in reasons[1]
    assert metrics.events_total.labels("forged")._value.get() == counted + 2
    await empty(producer, settings)


async def test_events_of_other_logins_of_the_fleet_count(
    api: API, settings: Settings, producer: Producer, put: Outbox, other_user: str
) -> None:
    user = URL(other_user).user
    event_id = await forge(other_user, settings.queue_names.events_queue, user_id=user)
    fleet = settings.model_copy(update={"fleet_users": f"another, {user}"})
    async with api.serve(), emitting(fleet):
        await api.has_taken([event_id])
    await empty(producer, settings)


async def test_what_was_left_without_a_user_is_set_aside_and_can_be_sent_again(
    api: API, settings: Settings, put: Outbox, producer: Producer, amqp_url: str
) -> None:
    """As version 0.2.0 wrote events."""
    event_id = await forge(amqp_url, settings.queue_names.events_queue)
    async with api.serve(), emitting(settings):
        async with asyncio.timeout(60):
            while not await producer.depth(settings.queue_names.dead_letter_queue):
                await asyncio.sleep(0.05)
        given = {"amqp_url": amqp_url, "queue": settings.queue}
        again = await command("dead-letters", "replay", "--all", **given)
        assert again.code == 0, again.out + again.err
        await api.has_taken([event_id])
    assert api.taken == [event_id]


async def test_a_request_that_looks_like_an_event_is_never_sent_again_as_one(
    settings: Settings, put: Outbox, producer: Producer, amqp_url: str, other_user: str
) -> None:
    given = {"amqp_url": amqp_url, "queue": settings.queue}
    properties = {"type": "prefect_event", "user_id": URL(other_user).user}
    await forge(other_user, settings.queue_names.dead_letter_queue, **properties)
    again = await command("dead-letters", "replay", "--all", **given)
    assert again.code == 1
    assert "no worker wrote it" in again.err + again.out
    assert await producer.depth(settings.queue_names.events_queue) == 0


@pytest.mark.parametrize("guess", ["guest", "someone-else"])
async def test_the_broker_says_who_is_logged_in(amqp_url: str, guess: str) -> None:
    """With certificates or OAuth, the broker knows another user than the URL's."""
    connection = await connect(amqp_url, name="test", connection_class=Connection)
    try:
        connection.url = connection.url.with_user(guess)
        assert await login_of(connection) == "guest"
        assert not connection.is_closed
    finally:
        await close_quietly(connection)
