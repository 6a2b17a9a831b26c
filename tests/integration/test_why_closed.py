"""The broker's own reason is passed on when it refuses or closes a connection."""

import asyncio
from collections.abc import Iterator

import aio_pika
import pytest
from yarl import URL

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.rabbitmq import RabbitMQ
from worker.amqp.transport import Connection
from worker.amqp.watch import WatchedConnection
from worker.broker.connection import (
    BrokerRefused,
    BrokerUnavailable,
    ChannelLost,
    close_quietly,
    connect,
    lost_with,
)
from worker.broker.session import Session
from worker.broker.topology import Topology
from worker.client import BrokerGone, FlowRunClient
from worker.client.sync import FlowRunClient as SyncClient

BOTH = [Connection, WatchedConnection]
NO_CONNECTIONS = '{"max-connections":0}'
FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


@pytest.fixture
def user(rabbitmq: RabbitMQ, queue: str) -> Iterator[str]:
    name = f"user-{queue}"
    rabbitmq.ctl("add_user", name, "secret")
    rabbitmq.ctl("set_permissions", name, ".*", ".*", ".*")
    yield name
    rabbitmq.ctl("delete_user", name)


@pytest.fixture
def url(rabbitmq: RabbitMQ, user: str) -> str:
    return str(URL(rabbitmq.url).with_user(user).with_password("secret"))


@pytest.fixture
def virtual_host(rabbitmq: RabbitMQ, queue: str) -> Iterator[str]:
    rabbitmq.ctl("add_vhost", queue)
    rabbitmq.ctl("set_permissions", "-p", queue, "guest", ".*", ".*", ".*")
    yield queue
    rabbitmq.ctl("delete_vhost", queue)


@pytest.mark.parametrize("connection_class", BOTH)
async def test_a_users_limit_of_connections_is_named_and_may_pass(
    connection_class: type[aio_pika.Connection], rabbitmq: RabbitMQ, user: str, url: str
) -> None:
    rabbitmq.ctl("set_user_limits", user, NO_CONNECTIONS)
    with pytest.raises(BrokerUnavailable, match=rf"user '{user}': user connection limit \(0\) is reached"):
        await connect(url, name="test", connection_class=connection_class)


@pytest.mark.parametrize("connection_class", BOTH)
async def test_a_virtual_hosts_limit_of_connections_is_named_and_may_pass(
    connection_class: type[aio_pika.Connection], rabbitmq: RabbitMQ, virtual_host: str
) -> None:
    rabbitmq.ctl("set_vhost_limits", "-p", virtual_host, NO_CONNECTIONS)
    with pytest.raises(BrokerUnavailable, match=r"connection limit \(0\) is reached"):
        await connect(rabbitmq.url + virtual_host, name="test", connection_class=connection_class)


@pytest.mark.parametrize("connection_class", BOTH)
async def test_what_only_an_operator_can_mend_is_told_apart(
    connection_class: type[aio_pika.Connection], rabbitmq: RabbitMQ, user: str, url: str
) -> None:
    with pytest.raises(BrokerRefused, match="vhost nowhere not found"):
        await connect(f"{rabbitmq.url}nowhere", name="test", connection_class=connection_class)
    rabbitmq.ctl("clear_permissions", user)
    with pytest.raises(BrokerRefused, match=f"access to vhost '/' refused for user '{user}'"):
        await connect(url, name="test", connection_class=connection_class)
    with pytest.raises(BrokerRefused, match=r"login.*ACCESS_REFUSED"):
        await connect(str(URL(url).with_password("no")), name="test", connection_class=connection_class)


@pytest.mark.parametrize("connection_class", BOTH)
async def test_why_an_operator_closed_it_is_told_to_whoever_waits(
    connection_class: type[Connection | WatchedConnection], rabbitmq: RabbitMQ, queue: str
) -> None:
    connection = await connect(rabbitmq.url, name=queue, connection_class=connection_class)
    channel = await connection.channel()
    await channel.declare_queue(queue, exclusive=True)
    listed = await asyncio.to_thread(rabbitmq.ctl, "list_connections", "pid", "client_properties")
    (pid,) = [line.split("\t")[0] for line in listed.splitlines() if queue in line]
    await asyncio.to_thread(rabbitmq.ctl, "close_connection", pid, "the reason of the test")
    async with asyncio.timeout(60):
        while not channel.is_closed:
            await asyncio.sleep(0.01)
    with pytest.raises(ChannelLost, match="the reason of the test"), lost_with(channel):
        await channel.declare_queue(queue)
    assert connection.frames.closed == "CONNECTION_FORCED - the reason of the test"
    await close_quietly(connection)


async def test_a_session_that_ends_tells_the_brokers_reason(
    rabbitmq: RabbitMQ, user: str, url: str, queue: str
) -> None:
    session = await Session.open(url, Topology(queue), name="test")
    await asyncio.to_thread(rabbitmq.ctl, "close_all_user_connections", user, "maintenance at noon")
    lost = await asyncio.wait_for(asyncio.shield(session.lost), 60)
    assert "maintenance at noon" in str(lost)
    await session.close()


async def test_clients_and_commands_name_the_limit(
    rabbitmq: RabbitMQ, user: str, url: str, queue: str, sqlite_url: str
) -> None:
    await asyncio.to_thread(rabbitmq.ctl, "set_user_limits", user, NO_CONNECTIONS)
    limit = r"user connection limit \(0\) is reached"
    async with FlowRunClient(url, queue=queue) as client:
        with pytest.raises(BrokerGone, match=limit):
            await client.publish({"flow_id": FLOW_ID})
    with SyncClient(url, queue=queue) as sync, pytest.raises(BrokerGone, match=limit):
        await asyncio.to_thread(sync.publish, {"flow_id": FLOW_ID})
    for arguments in (["dead-letters", "list"], ["doctor"], ["topology", "declare"]):
        done = await command(*arguments, amqp_url=url, queue=queue, database_url=sqlite_url)
        assert done.code == 1
        assert "user connection limit (0) is reached" in done.out + done.err


async def test_a_worker_waits_for_room_below_the_limit(
    start_worker: StartWorker, rabbitmq: RabbitMQ, user: str, url: str, sqlite_url: str
) -> None:
    """As in a rolling update, while the worker before it still has its connections."""
    rabbitmq.ctl("set_user_limits", user, NO_CONNECTIONS)
    worker = start_worker(sqlite_url, amqp_url=url, wait=False)
    await asyncio.to_thread(worker.wait_until_logged, "connection limit (0) is reached")
    rabbitmq.ctl("clear_user_limits", user, "all")
    await asyncio.to_thread(worker.wait_until_logged, "serving")
    assert worker.terminate() == 0
