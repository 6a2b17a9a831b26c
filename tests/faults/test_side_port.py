"""Clients of the side port delay neither probes nor requests."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.support.producer import Producer
from tests.support.requests import FLOW_ID
from tests.support.worker_process import WorkerProcess
from worker.observability.http import LIMITS, Limits, side_port
from worker.observability.metrics import readiness

# A worker alone has 30 open, and its side port CONNECTIONS_MAX.
FILES_MAX = 256
HALF_OPEN = 300
GET = b"GET /%s HTTP/1.1\r\nHost: worker\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def worker(amqp_url: str, queue: str, tmp_path: Path, sqlite_url: str) -> AsyncIterator[WorkerProcess]:
    """A worker with a low limit of open files."""
    settings = {"AMQP_URL": amqp_url, "QUEUE": queue, "DATABASE_URL": sqlite_url, "HTTP_PORT": "0"}
    few = f"ulimit -n {FILES_MAX}; exec {sys.executable} -m worker run"
    worker = WorkerProcess(
        tmp_path / "worker.log",
        {f"WORKER_{name}": value for name, value in settings.items()},
        ["/bin/sh", "-c", few],
    )
    try:
        await asyncio.to_thread(worker.wait_until_logged, "serving")
        yield worker
        assert await asyncio.to_thread(worker.terminate) == 0, worker.output
        assert "Traceback" not in worker.output
    finally:
        worker.kill()


async def connect(where: str) -> Streams:
    host, _, port = where.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def ask(where: str, path: str) -> bytes:
    """The status line of an answer, on a connection for this request alone."""
    reader, writer = await connect(where)
    writer.write(GET % path.encode() + b"\r\n")
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n")[0]


def probe(where: str) -> bytes:
    """A probe's answer from ``/livez``. Call it in a thread, where no crowd of this process delays
    its request.
    """
    host, _, port = where.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(GET % b"livez" + b"\r\n")
        return connection.makefile("rb").read()


async def half_open(where: str) -> None:
    """Send nothing, or the beginning of a request."""
    for number in range(HALF_OPEN):
        _, writer = await connect(where)
        writer.write(GET % b"livez" if number % 2 else b"")
        HELD.append(writer)


async def slowly(where: str) -> None:
    """Send a header that never ends."""

    async def one(writer: asyncio.StreamWriter) -> None:
        writer.write(GET % b"livez" + b"X-Slow: ")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.5)

    for _ in range(HALF_OPEN):
        _, writer = await connect(where)
        TASKS.append(asyncio.create_task(one(writer)))


async def large_headers(where: str) -> None:
    reader, writer = await connect(where)
    writer.write(GET % b"livez" + b"X-Large: " + bytes(1 << 20).replace(b"\0", b"x") + b"\r\n\r\n")
    assert b" 400 " in await _answers(reader)
    reader, writer = await connect(where)
    writer.write(GET % b"livez" + b"".join(b"X-%d: x\r\n" % number for number in range(1000)) + b"\r\n")
    assert b" 400 " in await _answers(reader)
    reader, writer = await connect(where)
    writer.write(GET % (b"livez?" + b"x" * (1 << 20)) + b"\r\n")
    assert b" 400 " in await _answers(reader)


async def pipelined(where: str) -> None:
    """Pipeline many requests; one is answered."""
    reader, writer = await connect(where)
    writer.write((GET % b"readyz" + b"\r\n") * 10_000)
    assert (await _answers(reader)).count(b"HTTP/1.1 ") == 1


async def endless_body(where: str) -> None:
    reader, writer = await connect(where)
    writer.write(b"POST /livez HTTP/1.1\r\nHost: w\r\nContent-Length: 1000000000000\r\n\r\n" + b"x" * 65_536)
    assert b" 405 " in await _answers(reader)


async def crowd(where: str) -> None:
    """Many readers of the page that queries the database."""

    async def one() -> None:
        while True:
            try:
                await ask(where, "readyz")
            except OSError:
                await asyncio.sleep(0.1)

    TASKS.extend(asyncio.create_task(one()) for _ in range(400))
    await asyncio.sleep(1)


async def _answers(reader: asyncio.StreamReader) -> bytes:
    """All bytes until the connection ends or breaks."""
    answers = b""
    try:
        while more := await reader.read(65_536):
            answers += more
    except ConnectionResetError:
        pass
    return answers


HELD: list[asyncio.StreamWriter] = []
TASKS: list[asyncio.Task[None]] = []

ATTACKS = (half_open, slowly, large_headers, pipelined, endless_body, crowd)


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.__name__ for attack in ATTACKS])
async def test_probes_and_requests_are_answered_whatever_the_side_port_gets(
    worker: WorkerProcess, producer: Producer, attack: Callable[[str], Awaitable[None]]
) -> None:
    try:
        await attack(worker.http)
        for _ in range(3):
            assert b" 200 " in await asyncio.to_thread(probe, worker.http)
            assert (await producer.request({"flow_id": FLOW_ID})).status == 201
        for task in TASKS:
            task.cancel()
        async with asyncio.timeout(60):  # until the crowd has its answers
            while b" 200 " not in await ask(worker.http, "readyz"):
                await asyncio.sleep(0.1)
    finally:
        for task in TASKS:
            task.cancel()
        for writer in HELD:
            writer.close()
        TASKS.clear()
        HELD.clear()


def _port(ping: Callable[[], Awaitable[Any]], limits: Limits = LIMITS) -> AbstractAsyncContextManager[str]:
    return side_port("127.0.0.1", 0, ping, asyncapi=b"{}", demanded=True, limits=limits)


async def test_all_readers_of_a_second_share_one_look_at_the_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readiness, "database", None)
    pings = 0

    async def ping() -> None:
        nonlocal pings
        pings += 1
        await asyncio.sleep(0.2)

    async with _port(ping) as where:
        await asyncio.gather(*(ask(where, path) for path in ("readyz", "metrics") * 20))
        assert pings == 1
        await asyncio.sleep(LIMITS.fresh)
        await ask(where, "readyz")
        assert pings == 2


async def test_a_ping_that_hangs_is_not_joined_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "database", None)
    pings = 0
    answered = asyncio.Event()

    async def ping() -> None:
        nonlocal pings
        pings += 1
        await answered.wait()

    async with _port(ping, Limits(ping=0.05, fresh=0.0)) as where:
        for _ in range(5):
            assert b" 503 " in await ask(where, "readyz")
        assert pings == 1
        answered.set()
        monkeypatch.setattr(readiness, "broker", None)
        while b" 200 " not in await ask(where, "readyz"):
            pass


async def test_a_crowd_of_readers_ends_no_connection_that_has_yet_to_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A probe on a busy machine also sends its request a moment after it connects."""
    monkeypatch.setattr(readiness, "database", None)
    limits = Limits(connections=20)
    async with _port(asyncio.Event().wait, limits) as where:
        reader, writer = await connect(where)
        await asyncio.sleep(0.3)
        crowd = [asyncio.create_task(ask(where, "readyz")) for _ in range(60)]
        # No more than the limit stay connected.
        while sum(each.done() for each in crowd) < 60 - limits.connections:
            await asyncio.sleep(0)
        writer.write(GET % b"livez" + b"\r\n")
        assert b" 200 " in await _answers(reader)
        await asyncio.gather(*crowd, return_exceptions=True)


async def test_a_connection_that_asks_nothing_is_ended() -> None:
    async with _port(lambda: asyncio.sleep(0), Limits(connection=0.1)) as where:
        reader, _ = await connect(where)
        assert await _answers(reader) == b""
