"""The client's connections must write nothing of their own to its process's standard error."""

import asyncio
import subprocess
import sys

from tests.support.producer import Producer

# Refusals, lost connections and a stopped broker; then a connection of the user's own.
PROGRAM = """
import asyncio, logging, sys
import aio_pika
from worker.client import *

url, queue, logging_is_set_up = sys.argv[1:]
if logging_is_set_up == "yes":
    logging.basicConfig()


async def attempt(urls, **headers):
    async with FlowRunClient(urls, queue=queue, timeout=20) as client:
        try:
            await client.publish({"flow_id": "x"}, headers=headers, check=False)
        except ClientError as error:
            print(type(error).__name__)


async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # a busy machine is no news
    await attempt(url)
    await attempt(url, traceparent="0" * 200_000)
    await attempt(url, CC="no list")
    await attempt("amqp://127.0.0.1:1/")
    await attempt(url.replace("guest:guest", "guest:wrong"))
    await attempt(url.rstrip("/") + "/nowhere")
    print("--", file=sys.stderr)
    try:
        await aio_pika.connect("amqp://127.0.0.1:1/")
    except ConnectionError:
        pass


asyncio.run(main())
"""


async def printed(amqp_url: str, queue: str, logging_is_set_up: str) -> tuple[list[str], list[str]]:
    """The standard error caused by the client, and that caused by the user's own connection."""
    command = [sys.executable, "-X", "dev", "-c", PROGRAM, amqp_url, queue, logging_is_set_up]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "MessageRefused",
        "MessageRefused",
        "BrokerGone",
        "BrokerGone",
        "BrokerGone",
    ]
    by_the_client, by_the_user = done.stderr.split("--\n")
    return by_the_client.splitlines(), by_the_user.splitlines()


async def test_nothing_is_printed_where_no_logging_is_set_up(
    producer: Producer, amqp_url: str, queue: str
) -> None:
    """Python prints warnings there, and still does for the user's own connections."""
    await producer.channel.declare_queue(queue, auto_delete=True)
    by_the_client, by_the_user = await printed(amqp_url, queue, "no")
    assert by_the_client == []
    assert len(by_the_user) == 1
    assert "error when creating transport" in by_the_user[0]


async def test_all_is_logged_where_logging_is_set_up(producer: Producer, amqp_url: str, queue: str) -> None:
    await producer.channel.declare_queue(queue, auto_delete=True)
    by_the_client, by_the_user = await printed(amqp_url, queue, "yes")
    assert any("ERROR:aiormq.connection:Unexpected connection close" in line for line in by_the_client)
    assert sum("ERROR:aiormq.connection:error when creating" in line for line in by_the_client) >= 5
    assert "ERROR:aiormq.connection:error when creating" in by_the_user[0]
