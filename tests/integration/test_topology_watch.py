"""Objects that vanish from the broker while a worker runs are noticed, made again and logged. So
are policies that drop, expire or limit messages.
"""

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import aio_pika
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity
from aiohttp import web
from pamqp.commands import Basic
from prometheus_client import REGISTRY
from yarl import URL

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.processes import wait_until
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from worker.broker import policies
from worker.broker.connection import connect
from worker.broker.management import Management, ManagementUnavailable
from worker.broker.session import Session
from worker.broker.topology import Topology
from worker.broker.topology_watch import TopologyWatch
from worker.observability import metrics
from worker.settings import Settings

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A broker that can be asked for policies."""
    with RabbitMQ(plugins=["rabbitmq_management"]) as node:
        yield node


@pytest.fixture
async def connection(amqp_url: str) -> AsyncIterator[aio_pika.Connection]:
    connection = await connect(amqp_url, name="test", connection_class=aio_pika.Connection)
    yield connection
    await connection.close()


@pytest.fixture(autouse=True)
def readiness() -> Iterator[None]:
    """As in a serving worker."""
    before = metrics.readiness.broker
    metrics.readiness.broker = None
    yield
    metrics.readiness.broker = before
    metrics.readiness.vanished.clear()
    metrics.topology_faulty(None)
    metrics.policies([])


@asynccontextmanager
async def watching(amqp_url: str, queue: str, **settings: str) -> AsyncIterator[Topology]:
    """A watch with a short interval, after its first look."""
    chosen = Settings(amqp_url=amqp_url, queue=queue, **settings)  # type: ignore[arg-type]  # texts
    topology = Topology(queue, on_vanished=metrics.declared_again)
    watch = TopologyWatch(chosen.amqp_url, chosen.management_url, topology, every=0.1)
    watch.start()
    try:
        await until(lambda: watch._was_bound or metrics.readiness.topology is not None)
        yield topology
    finally:
        await watch.stop()


async def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


def counted(kind: str) -> float:
    return REGISTRY.get_sample_value("flow_run_worker_topology_declared_again_total", {"kind": kind}) or 0.0


async def stands(connection: aio_pika.Connection, queue: str) -> bool:
    try:
        channel = await connection.channel()
        await channel.get_queue(queue)
        await channel.close()
    except ChannelNotFoundEntity:
        return False
    return True


async def arrives(connection: aio_pika.Connection, topology: Topology) -> bool:
    """Whether a message to the exchange reaches a queue."""
    channel = await connection.channel()
    exchange = await channel.get_exchange(topology.exchange or "", ensure=False)
    confirmed = await exchange.publish(aio_pika.Message(b""), topology.routing_key or "", mandatory=True)
    await channel.close()
    return isinstance(confirmed, Basic.Ack)


async def test_a_queue_that_vanished_is_made_again_counted_and_told(
    amqp_url: str, queue: str, connection: aio_pika.Connection
) -> None:
    before = counted("queue")
    async with watching(amqp_url, queue) as topology:
        await (await connection.channel()).queue_delete(topology.dead_letter_queue)
        await until(lambda: metrics.readiness.vanished)
        assert await stands(connection, topology.dead_letter_queue)
    assert f"queue '{topology.dead_letter_queue}' had vanished" in str(metrics.readiness.vanished)
    assert counted("queue") == before + 1


async def test_an_exchange_that_vanished_is_made_again_with_its_binding(
    amqp_url: str, queue: str, connection: aio_pika.Connection
) -> None:
    async with watching(amqp_url, queue) as topology:
        assert topology.exchange is not None
        await (await connection.channel()).exchange_delete(topology.exchange)
        await until(lambda: metrics.readiness.vanished)
        assert f"exchange '{topology.exchange}' had vanished" in str(metrics.readiness.vanished)
        assert await arrives(connection, topology)


@pytest.mark.parametrize("asks", [False, True], ids=["without the management API", "with it"])
async def test_a_binding_that_vanished_is_made_again(
    rabbitmq: RabbitMQ, amqp_url: str, queue: str, connection: aio_pika.Connection, asks: bool
) -> None:
    before = counted("binding")
    settings = {"management_url": rabbitmq.management_url} if asks else {}
    async with watching(amqp_url, queue, **settings) as topology:
        channel = await connection.channel()
        requests = await channel.get_queue(queue, ensure=False)
        await requests.unbind(topology.exchange or "", topology.routing_key)

        async def bound() -> bool:
            async with Management(rabbitmq.management_url, amqp_url) as management:
                return await management.bound(topology.exchange or "", topology.routing_key or "", queue)

        async with asyncio.timeout(120):
            while not await bound():
                await asyncio.sleep(0.05)
    assert counted("binding") == before + asks
    assert ("binding" in str(metrics.readiness.vanished)) == asks


async def test_a_user_who_may_declare_nothing_is_told_what_is_missing(
    rabbitmq: RabbitMQ, amqp_url: str, queue: str, connection: aio_pika.Connection
) -> None:
    name = f"user-{queue}"
    rabbitmq.ctl("add_user", name, "secret")
    rabbitmq.ctl("set_user_tags", name, "management")
    rabbitmq.ctl("set_permissions", name, "^$", r"^amq\.default$", f"^{re.escape(queue)}$")
    url = str(URL(amqp_url).with_user(name).with_password("secret"))
    topology = Topology(queue)
    await topology.ensure(connection)
    async with watching(url, queue, management_url=rabbitmq.management_url):
        assert metrics.readiness.topology is None
        channel = await connection.channel()
        requests = await channel.get_queue(queue, ensure=False)
        await requests.unbind(topology.exchange or "", topology.routing_key)
        await until(lambda: "reaches nobody" in str(metrics.readiness.topology))
        await channel.exchange_delete(topology.exchange or "")
        await until(lambda: f"exchange '{topology.exchange}'" in str(metrics.readiness.topology))
        assert "topology declare" in str(metrics.readiness.topology)
        await topology.ensure(connection)
        await until(lambda: metrics.readiness.topology is None)
    assert not metrics.readiness.vanished


async def test_what_a_worker_declares_again_is_on_its_side_port(
    amqp_url: str,
    queue: str,
    sqlite_url: str,
    start_worker: StartWorker,
    connection: aio_pika.Connection,
    producer: Producer,
) -> None:
    """Its session ends with the queue, and the next one declares it."""
    worker = start_worker(sqlite_url)
    await (await connection.channel()).queue_delete(queue)
    wait_until(lambda: "vanished" in worker.output, "the log line")
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201
    status, body = worker.readiness()
    assert status == 200
    assert f"queue '{queue}' had vanished and was declared again at" in body["topology"]
    assert worker.metric("flow_run_worker_topology_declared_again_total", kind="queue") == 1
    assert worker.terminate() == 0


async def test_a_queue_that_is_deleted_amid_a_look_does_not_leave_its_consumer_deaf(
    amqp_url: str, queue: str, connection: aio_pika.Connection
) -> None:
    """RabbitMQ forgets a quorum queue's consumer if the queue is declared again at once."""
    topology = Topology(queue)
    channel = await connection.channel()
    for moment in range(20):
        session = await Session.open(amqp_url, topology, name="test", try_out="consume first")
        watch = TopologyWatch(amqp_url, None, topology)
        watch.start()  # it looks at once
        await asyncio.sleep(moment / 100)
        await channel.queue_delete(queue)
        async with asyncio.timeout(120):
            assert "cancelled the consumer" in str(await asyncio.shield(session.lost))
        await watch.stop()
        await session.close()


# All members of the kind, as a hosting plan may have them for all queues.
HARMFUL = {
    "expires": 3_600_000,
    "message-ttl": 3_600_000,
    "max-length": 100_000,
    "max-length-bytes": 1_000_000_000,
    "delivery-limit": 10,
}


@pytest.mark.parametrize("kind", ["policy", "operator_policy"])
async def test_policies_that_drop_expire_or_limit_are_named(
    rabbitmq: RabbitMQ, amqp_url: str, queue: str, kind: str
) -> None:
    definition = HARMFUL | ({"overflow": "drop-head"} if kind == "policy" else {})
    async with watching(amqp_url, queue, management_url=rabbitmq.management_url) as topology:
        pattern = f"^{re.escape(queue)}"
        rabbitmq.ctl(f"set_{kind}", "of-the-plan", pattern, json.dumps(definition), "--apply-to", "queues")
        try:
            await until(
                lambda: all(f"{name}: the " in str(metrics.readiness.policies) for name in topology.queues)
            )
            told = str(metrics.readiness.policies)
            assert all(name in told for name in definition), told
            done = await command(
                "doctor", "--json", amqp_url=amqp_url, queue=queue, management_url=rabbitmq.management_url
            )
        finally:
            rabbitmq.ctl(f"clear_{kind}", "of-the-plan")
    assert done.code == 1
    found = [each for each in json.loads(done.out) if each["what"].startswith("policy of ")]
    assert all("of-the-plan" in each["detail"] and "set_policy" in each["advice"] for each in found)
    letters = [each["verdict"] for each in found if each["what"].endswith(".dead")]
    assert letters == ["problem"] * len(HARMFUL)


async def test_the_policy_that_doctor_names_protects_the_queues(
    rabbitmq: RabbitMQ, amqp_url: str, queue: str, connection: aio_pika.Connection
) -> None:
    """Where all queues expire, dead letters do as well. Declaring a quorum queue again does not
    renew its lease, although RabbitMQ's pages say so of classic ones.
    """
    topology, unprotected = Topology(queue), f"{queue}-unprotected"
    words = shlex.split(policies.command(topology, "/"))
    assert words[0] == "rabbitmqctl"
    channel = await connection.channel()
    arguments = {"x-queue-type": "quorum"}
    rabbitmq.ctl(
        "set_policy", "of-the-plan", f"^{re.escape(queue)}", '{"expires": 2000}', "--apply-to", "queues"
    )
    rabbitmq.ctl(*words[1:])
    try:
        await topology.ensure(connection)
        await channel.declare_queue(unprotected, durable=True, arguments=arguments)
        for name in (topology.dead_letter_queue, unprotected):
            await channel.default_exchange.publish(aio_pika.Message(b"letter"), name)

        async def count(name: str) -> int | None:
            declared = await channel.declare_queue(name, durable=True, arguments=arguments)
            return declared.declaration_result.message_count

        async with asyncio.timeout(120):
            while await count(unprotected):
                await asyncio.sleep(0.2)
        assert await count(topology.dead_letter_queue) == 1
        async with Management(rabbitmq.management_url, amqp_url) as management, asyncio.timeout(120):
            while (seen := await management.queue(topology.dead_letter_queue)) is None:
                await asyncio.sleep(0.2)
        assert seen["policy"] == policies.POLICY
        assert list(policies.harms(topology, "/", topology.dead_letter_queue, seen)) == []
        # Without the policy, RabbitMQ 4 drops a letter after twenty looks.
        letters = await channel.get_queue(topology.dead_letter_queue)
        for _ in range(50):
            await (await letters.get()).nack(requeue=True)
        async with asyncio.timeout(120):
            while await count(topology.dead_letter_queue) != 1:
                await asyncio.sleep(0.05)
    finally:
        rabbitmq.ctl("clear_policy", "of-the-plan")
        rabbitmq.ctl("clear_policy", policies.POLICY)


async def test_what_is_not_checked_is_not_called_well(rabbitmq: RabbitMQ, amqp_url: str, queue: str) -> None:
    assert (await command("topology", "declare", amqp_url=amqp_url, queue=queue)).code == 0
    done = await command("doctor", amqp_url=amqp_url, queue=queue)
    assert done.code == 0
    assert "not checked policies and binding" in done.out
    assert "WORKER_MANAGEMENT_URL" in done.out
    assert "set_policy" in done.out


async def test_a_missing_binding_is_a_problem_to_doctor(
    rabbitmq: RabbitMQ, amqp_url: str, queue: str, connection: aio_pika.Connection
) -> None:
    topology = Topology(queue)
    await topology.ensure(connection)
    requests = await (await connection.channel()).get_queue(queue, ensure=False)
    await requests.unbind(topology.exchange or "", topology.routing_key)
    done = await command("doctor", amqp_url=amqp_url, queue=queue, management_url=rabbitmq.management_url)
    assert done.code == 1
    assert "reaches nobody" in done.out


async def test_an_api_that_does_not_say_keeps_no_worker_from_serving(
    rabbitmq: RabbitMQ,
    amqp_url: str,
    queue: str,
    sqlite_url: str,
    start_worker: StartWorker,
    producer: Producer,
) -> None:
    url = str(URL(rabbitmq.management_url).with_user("guest").with_password("not-the-password"))
    worker = start_worker(sqlite_url, management_url=url)
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201
    wait_until(lambda: "policies_not_checked" in worker.output, "the log line")
    status, body = worker.readiness()
    assert status == 200
    assert "not checked: http://127.0.0.1" in body["policies"]
    assert "answers 401" in body["policies"]
    assert "not-the-password" not in worker.output + str(body)
    assert worker.terminate() == 0
    done = await command("doctor", amqp_url=amqp_url, queue=queue, management_url=url)
    assert done.code == 0
    assert "answers 401" in done.out
    assert "not-the-password" not in done.out + done.err


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(text="not JSON"),
        web.Response(status=500),
        web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
        web.Response(status=403),
        None,
    ],
    ids=["no JSON", "500", "redirection", "403", "nobody"],
)
async def test_an_answer_that_is_none_is_told_without_the_password(
    answer: web.Response | None, unused_tcp_port: int
) -> None:
    async def answering(_: web.Request) -> web.Response:
        assert answer is not None
        return answer

    app = web.Application()
    app.router.add_get("/{path:.*}", answering)
    runner = web.AppRunner(app)
    await runner.setup()
    if answer is not None:
        await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    try:
        url = f"http://user:secret@127.0.0.1:{unused_tcp_port}/api/"
        async with Management(url, "amqp://localhost/") as management:
            with pytest.raises(ManagementUnavailable) as told:
                await management.queue("q")
        assert "secret" not in str(told.value)
    finally:
        await runner.cleanup()


async def test_names_of_virtual_hosts_and_queues_are_encoded(rabbitmq: RabbitMQ, queue: str) -> None:
    vhost = f"a/b {queue}"
    rabbitmq.ctl("add_vhost", vhost)
    rabbitmq.ctl("set_permissions", "--vhost", vhost, "guest", ".*", ".*", ".*")
    url = str(URL(rabbitmq.url)) + vhost.replace("/", "%2F").replace(" ", "%20")
    name = "odd/#, queue.create"
    async with (
        watching(url, name, management_url=rabbitmq.management_url) as topology,
        Management(rabbitmq.management_url, url) as management,
        asyncio.timeout(120),
    ):
        assert management.vhost == vhost
        assert await management.bound(topology.exchange or "", "create", name)
        while await management.queue(name) is None:
            await asyncio.sleep(0.2)
    rabbitmq.ctl("delete_vhost", vhost)
