"""The undocumented features of aio-pika, aiormq and pamqp that we use: a test for each line of the
list in ``worker/amqp/__init__.py``, on the versions that ``pyproject.toml`` allows.

A failure after an update shows which assumption no longer holds.
"""

import asyncio
import inspect
import re
import tomllib
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import aio_pika
import aiormq
import pamqp.frame
import pytest
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from pamqp import commands as spec
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat
from yarl import URL

import worker.amqp
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import ROOT
from worker.amqp.transport import HEARTBEAT, Connection, FrameReader, Transport
from worker.amqp.watch import WatchedConnection, watch_of

CAPPED = ("aio-pika", "aiormq", "pamqp")


@pytest.mark.parametrize("name", CAPPED)
def test_the_library_is_capped_to_a_minor_release_and_that_is_installed(name: str) -> None:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (requirement,) = (each for each in requirements if re.split("[<>=]", each)[0] == name)
    found = re.fullmatch(rf"{name}>=(\d+)\.(\d+)(?:\.\d+)?,<(\d+)\.(\d+)", requirement)
    assert found is not None, requirement
    major, minor, next_major, next_minor = map(int, found.groups())
    assert (next_major, next_minor) == (major, minor + 1)
    installed = tuple(int(part) for part in version(name).split(".")[:2])
    assert installed == (major, minor)


@pytest.fixture
async def channel(connection: Connection) -> Channel:
    underlay = await (await connection.channel(publisher_confirms=True)).get_underlay_channel()
    assert isinstance(underlay, Channel)
    return underlay


# ``aio_pika.Connection.kwargs``, handed to ``aiormq.connect``


async def test_a_connections_kwargs_reach_aiormq(amqp_url: str) -> None:
    created: list[URL] = []

    class Noting(Transport):
        async def create(self, url: URL, **options: Any) -> Any:
            created.append(url)
            return await super().create(url, **options)

    class Own(aio_pika.Connection):
        def __init__(self, url: URL, **options: Any) -> None:
            super().__init__(url, **options)
            self.kwargs["transport_factory"] = Noting()

    connection = await aio_pika.connect(amqp_url, connection_class=Own)
    assert [url.port for url in created] == [URL(amqp_url).port]
    await connection.close()
    assert "transport_factory" in inspect.signature(aiormq.Connection.__init__).parameters


# ``aiormq.TransportFactory.create``, and that aiormq reads from its stream by ``readexactly``


async def test_a_transport_factory_gives_reader_and_writer_and_is_asked_with_the_tls_context(
    amqp_url: str,
) -> None:
    given: dict[str, Any] = {}

    class Noting(Transport):
        async def create(self, url: URL, **options: Any) -> Any:
            given.update(options)
            return await super().create(url, **options)

    connection = await aiormq.connect(amqp_url, transport_factory=Noting())
    assert set(given) == {"ssl_context_provider"}
    assert inspect.iscoroutinefunction(given["ssl_context_provider"].get_context)
    await connection.close()


async def test_aiormq_reads_by_readexactly_alone(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the reader needs only the bytes that it was fed."""
    used: set[str] = set()
    for name in ("read", "readline", "readuntil", "readexactly"):
        original = getattr(FrameReader, name)

        def noting(self: Any, *arguments: Any, _name: str = name, _original: Any = original) -> Any:
            used.add(_name)
            return _original(self, *arguments)

        monkeypatch.setattr(FrameReader, name, noting)
    connection = await aio_pika.connect(amqp_url, connection_class=Connection)
    await connection.channel()
    await connection.close()
    assert used == {"readexactly"}


async def test_a_heartbeat_is_a_sign_of_life_for_aiormq(connection: Connection) -> None:
    """It does not answer the frame that we insert ourselves."""
    underlay = connection.transport.connection  # type: ignore[union-attr]
    before = underlay.loop.time()
    assert isinstance(pamqp.frame.unmarshal(HEARTBEAT)[2], Heartbeat)
    reader = connection.frames._reader
    assert reader is not None
    underlay._Connection__last_frame_time = 0.0
    assert underlay.is_connection_was_stuck
    asyncio.StreamReader.feed_data(reader, HEARTBEAT)
    async with asyncio.timeout(60):
        while underlay.is_connection_was_stuck:
            await asyncio.sleep(0.01)
    assert underlay._Connection__last_frame_time >= before
    assert not underlay.is_closed


# ``asyncio.StreamReader.feed_data``, ``feed_eof`` and ``set_transport``, overridden


async def test_asyncios_protocol_feeds_the_reader_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str
) -> None:
    called: list[str] = []
    for name in ("feed_data", "feed_eof", "set_transport"):
        original = getattr(FrameReader, name)

        def noting(self: Any, *arguments: Any, _name: str = name, _original: Any = original) -> None:
            called.append(_name)
            _original(self, *arguments)

        monkeypatch.setattr(FrameReader, name, noting)
    connection = await aio_pika.connect(amqp_url, connection_class=Connection)
    await connection.close()
    async with asyncio.timeout(60):
        while called[-1] != "feed_eof":
            await asyncio.sleep(0.01)
    assert called.count("feed_eof") == called.count("set_transport") == 1
    assert "feed_data" in called


async def test_asyncios_stream_pauses_what_it_was_given_while_its_buffer_is_full() -> None:
    called: list[str] = []
    reader = asyncio.StreamReader(limit=10)
    socket = SimpleNamespace(
        pause_reading=lambda: called.append("pause"), resume_reading=lambda: called.append("resume")
    )
    reader.set_transport(socket)
    reader.feed_data(b"x" * 21)
    assert called == ["pause"]
    await reader.readexactly(21)
    assert called == ["pause", "resume"]


# ``aiormq.Channel``: ``lock`` and ``write_queue``


async def test_what_is_put_into_the_write_queue_is_written_as_it_is_and_its_future_is_done(
    channel: Channel,
) -> None:
    queue = f"seams-{uuid4().hex[:8]}"
    await channel.queue_declare(queue, exclusive=True)
    one = [spec.Basic.Publish(routing_key=queue), ContentHeader(0, 0, spec.Basic.Properties())]
    payload = b"".join(pamqp.frame.marshal(each, channel.number) for each in one * 5)
    written = asyncio.get_running_loop().create_future()
    async with channel.lock:
        await channel.write_queue.put(ChannelFrame(payload, should_close=False, drain_future=written))
    await asyncio.wait_for(written, 60)
    async with asyncio.timeout(60):
        while (await channel.queue_declare(queue, exclusive=True)).message_count != 5:
            await asyncio.sleep(0.01)


async def test_the_channels_lock_keeps_its_own_frames_back(channel: Channel) -> None:
    """Without the lock, one could come between two frames of a message."""
    queue = f"seams-{uuid4().hex[:8]}"
    async with channel.lock:
        declaring = asyncio.create_task(channel.queue_declare(queue, exclusive=True))
        await asyncio.sleep(0.1)
        assert channel.write_queue.empty()
        assert not declaring.done()
    await asyncio.wait_for(declaring, 60)


async def test_the_lock_of_a_closed_channel_refuses(channel: Channel) -> None:
    await channel.close()
    with pytest.raises(aiormq.exceptions.ChannelInvalidStateError):
        async with channel.lock:
            pass


# ``on_consumer_cancel_callbacks``


async def test_the_broker_cancelling_a_consumer_is_told(channel: Channel, connection: Connection) -> None:
    queue = f"seams-{uuid4().hex[:8]}"
    await channel.queue_declare(queue)
    cancelled: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    channel.on_consumer_cancel_callbacks.add(cancelled.set_result)

    async def nothing(_: Any) -> None:
        return None

    consuming = await channel.basic_consume(queue, nothing)
    other = await (await connection.channel()).get_underlay_channel()
    await other.queue_delete(queue)
    frame = await asyncio.wait_for(cancelled, 60)
    assert isinstance(frame, spec.Basic.Cancel)
    assert frame.consumer_tag == consuming.consumer_tag


# ``basic_ack(wait=False)`` and ``basic_reject``, whose order the acknowledger counts on


async def test_acks_are_written_in_the_order_in_which_they_are_given(
    channel: Channel, connection: Connection
) -> None:
    queue = f"seams-{uuid4().hex[:8]}"
    await channel.queue_declare(queue)
    for _ in range(4):
        await channel.basic_publish(b"", routing_key=queue)
    for _ in range(4):
        await channel.basic_get(queue)
    await channel.basic_ack(3, wait=False)
    await channel.basic_ack(2, multiple=True, wait=False)  # 3 may not be outstanding any more
    await channel.basic_reject(4, requeue=False, wait=False)
    # A round trip: the broker would have closed the channel over a wrong order.
    declared = await channel.queue_delete(queue)
    assert declared.message_count == 0
    assert not channel.is_closed


# ``aiormq.Connection.connection_tune.frame_max``


async def test_the_frame_size_that_was_agreed_is_known(connection: Connection, rabbitmq: RabbitMQ) -> None:
    agreed = connection.transport.connection.connection_tune.frame_max  # type: ignore[union-attr]
    assert str(agreed) in rabbitmq.ctl("list_connections", "frame_max").split()


# ``pamqp.commands.Basic.Properties.marshal``, which pamqp calls to write a content header


def test_pamqp_asks_the_properties_to_write_themselves() -> None:
    class Written(spec.Basic.Properties):
        def marshal(self) -> bytes:
            return b"\0\0mine"

    assert pamqp.frame.marshal(ContentHeader(0, 0, Written()), 1).endswith(b"\0\0mine\xce")


async def test_a_message_of_our_own_properties_goes_out_with_them_by_aiormq(
    connection: Connection,
) -> None:
    from worker.amqp.plain import WrittenProperties
    from worker.amqp.properties import join, short_string

    raw = join({"correlation_id": short_string(""), "message_id": short_string("m"), "app_id": b"\1\xff"})
    channel = await connection.channel()
    queue = await channel.declare_queue(exclusive=True)
    underlay = await channel.get_underlay_channel()
    await underlay.basic_publish(b"body", routing_key=queue.name, properties=WrittenProperties(raw))
    incoming = await queue.get()
    assert connection.frames.properties == {(channel.number, incoming.delivery_tag): raw}


# ``aio_pika.Channel._connection``, and ``feed_data`` of the reader of ``TCPTransportFactory``
async def test_a_channel_leads_to_its_connection_and_a_replaced_feed_data_is_called(amqp_url: str) -> None:
    connection = WatchedConnection(URL(amqp_url))
    read: list[int] = []
    connection.frames.note = lambda buffer, start: read.append(start)  # type: ignore[method-assign]
    await connection.connect()
    assert len(read) == 3  # connection.start, tune, open-ok
    channel = await connection.channel()
    assert watch_of(channel._connection) is connection.frames  # type: ignore[attr-defined]
    await connection.close()


def test_every_line_of_the_list_has_its_test() -> None:
    """The list is the docstring of the room; add a test here for each new line."""
    lines = re.findall(r"^- (.*)$", worker.amqp.__doc__ or "", re.MULTILINE)
    pinned = [
        "aio_pika.Connection.kwargs",
        "aiormq.TransportFactory.create",
        "asyncio.StreamReader.feed_data",
        "aiormq.Channel",
        "aiormq.Connection.connection_tune.frame_max",
        "pamqp.commands.Basic.Properties.marshal",
        "aio_pika.Channel._connection",
    ]
    assert [re.search(r"``([\w.]+)", line)[1] for line in lines] == pinned  # type: ignore[index]
