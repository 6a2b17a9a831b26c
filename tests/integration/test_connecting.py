"""Connecting to a host name with several addresses, or to a list of URLs, some of which don't
answer.
"""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import aio_pika
import pytest
from yarl import URL

from worker.amqp.transport import Connection
from worker.broker.connection import BrokerRefused, BrokerUnavailable, close_quietly, connect


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """An address that answers no connection attempt: a listener whose backlog is full."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        yield listener.getsockname()


@pytest.mark.parametrize("connection_class", [Connection, aio_pika.Connection])
async def test_the_second_address_of_a_host_is_tried_when_the_first_is_silent(
    connection_class: type[aio_pika.Connection],
    amqp_url: str,
    silent: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def two_addresses(host: str, port: int, **options: Any) -> list[Any]:
        answering = await resolve("127.0.0.1", URL(amqp_url).port, type=socket.SOCK_STREAM)
        return [(*answering[0][:4], silent), answering[0]] if host == "broker" else answering

    monkeypatch.setattr(loop, "getaddrinfo", two_addresses)
    url = str(URL(amqp_url).with_host("broker"))
    connection = await connect(url, name="test", connection_class=connection_class)
    await close_quietly(connection)


async def test_the_first_url_of_a_list_that_answers_is_used(amqp_url: str) -> None:
    urls = f"amqp://guest:guest@127.0.0.1:1/, {amqp_url}"
    connection = await connect(urls, name="test", connection_class=aio_pika.Connection)
    assert connection.url.port == URL(amqp_url).port
    await close_quietly(connection)


async def test_what_each_url_of_a_list_says_is_told(amqp_url: str) -> None:
    wrong = str(URL(amqp_url).with_password("wrong"))
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1.*refuses the login"):
        await connect(f"amqp://127.0.0.1:1/,{wrong}", name="test", connection_class=aio_pika.Connection)
    with pytest.raises(BrokerRefused, match="refuses the login"):
        await connect(f"{wrong},{wrong}", name="test", connection_class=aio_pika.Connection)
