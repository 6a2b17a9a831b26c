"""``dead-letters``: a user's commands list, replay and delete them."""

import asyncio
import json
import os
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

import aio_pika
import pytest
from yarl import URL

from tests.conftest import StartWorker
from tests.faults.hostile import Sent, frames, publish
from tests.faults.test_poison import publish_raw
from tests.support.command import command
from tests.support.database import fetch_runs
from tests.support.letters import fill
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from worker.amqp.properties import in_order, join, join_table, short_string
from worker.broker.topology import Topology
from worker.operate.dead_letters import open_dead_letters
from worker.operate.picked import CHUNK
from worker.operate.selection import Selection

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


async def listed(dead_letters: Callable[..., Any], *arguments: str) -> list[dict[str, Any]]:
    """The single letters, the oldest first."""
    done = await dead_letters("list", "--letters", "--json", *arguments)
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()][::-1]


async def all_back(producer: Producer, count: int) -> None:
    """Wait until the broker has returned the letters of a look to the queue."""
    async with asyncio.timeout(180):
        while await producer.depth(f"{producer.queue}.dead") < count:
            await asyncio.sleep(0.02)


async def refuse(
    start_worker: StartWorker,
    producer: Producer,
    database_url: str,
    *bodies: dict[str, Any],
    **properties: Any,
) -> None:
    """Have a worker refuse requests, and stop it."""
    worker = start_worker(database_url, max_body_bytes=300)
    assert {(await producer.request(body, **properties)).status for body in bodies} <= {413, 422}
    assert worker.terminate() == 0


async def test_they_are_listed_and_shown(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, dead_letters: Callable[..., Any]
) -> None:
    await refuse(
        start_worker,
        producer,
        sqlite_url,
        {"flow_id": 1, "idempotency_key": "order-1"},
        {"flow_id": FLOW_ID, "idempotency_key": "order-2", "parameters": {"x": "x" * 300}},
        headers={"colour": "red"},
        message_id="m-1",
    )
    first, second = await listed(dead_letters)
    assert (first["status"], first["idempotency_key"], first["message_id"]) == (422, "order-1", "m-1")
    assert (second["status"], second["idempotency_key"]) == (413, "order-2")
    assert "flow_id" in first["error"]
    assert first["failed_at"] < second["failed_at"]
    table = await dead_letters("list", "--letters")
    assert table.out.index(second["id"]) < table.out.index(first["id"])
    assert "2 of 2" in table.out
    assert await listed(dead_letters, "--status", "413") == [second]
    assert await listed(dead_letters, "--error", "FLOW_ID") == [first]
    shown = json.loads((await dead_letters("show", first["id"], "--json")).out)
    assert shown["body"] == {"flow_id": 1, "idempotency_key": "order-1"}
    assert shown["headers"]["colour"] == "red"
    assert shown["properties"]["reply_to"] == producer.reply_to
    unknown = await dead_letters("show", "ffffffffffff")
    assert unknown.code == 2
    assert await producer.depth(f"{producer.queue}.dead") == 2


async def test_looking_at_some_changes_nothing(
    producer: Producer, dead_letters: Callable[..., Any], amqp_url: str, queue: str
) -> None:
    """The list fits on a terminal of 80 columns."""
    await command("topology", "declare", amqp_url=amqp_url, queue=queue)
    for number in range(5):
        letter = aio_pika.Message(
            json.dumps({"flow_id": number, "idempotency_key": f"key-{number}"}).encode(),
            headers={
                "x-error": f"flow_id: {'Input should be a valid UUID, ' * 5}found {number}",
                "x-error-status": 422,
                "x-failed-at": f"2026-11-25T12:00:0{number}+00:00",
            },
        )
        await producer.channel.default_exchange.publish(letter, routing_key=f"{queue}.dead")
    for _ in range(4):
        await all_back(producer, 5)
        assert [each["idempotency_key"] for each in await listed(dead_letters, "--limit", "2")] == [
            "key-3",
            "key-4",
        ]
    await all_back(producer, 5)
    shown = await command("dead-letters", "list", "--letters", amqp_url=amqp_url, queue=queue, columns=80)
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line.split() for line in lines if "key-" in line]
    (cause,) = {head[3] for head in heads}
    assert cause.startswith("422-")
    assert [head[1:3] + head[-1:] for head in heads] == [
        ["2026-11-25", f"12:00:0{number}", f"key-{number}"] for number in reversed(range(5))
    ]
    assert "found 4" in shown.out
    assert "5 of 5" in shown.out


async def test_looking_at_them_often_loses_none(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, amqp_url: str
) -> None:
    """RabbitMQ 4 drops a message that was returned twenty times, unless a policy prevents it."""
    await refuse(start_worker, producer, sqlite_url, {"flow_id": 1}, {"flow_id": 2})
    seen = set()
    for _ in range(24):
        await all_back(producer, 2)
        async with open_dead_letters(amqp_url, Topology(producer.queue)) as letters:
            seen.add(frozenset([letter.id async for letter in letters.look()]))
    assert len(seen) == 1
    letters = await producer.dead_letters(2)
    assert {letter.raw for letter in letters} == {b'{"flow_id": 1}', b'{"flow_id": 2}'}
    assert {letter.headers["x-error-status"] for letter in letters} == {422}


async def test_what_becomes_of_those_that_are_sent_again_is_told(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, dead_letters: Callable[..., Any]
) -> None:
    large = {"flow_id": FLOW_ID, "idempotency_key": "large", "parameters": {"x": "x" * 300}}
    await refuse(start_worker, producer, sqlite_url, {"flow_id": 1}, large, {"flow_id": 2})
    idle = await dead_letters("replay", "--error", "flow_id", "--wait")
    assert idle.code == 1
    assert "Nobody consumes" in idle.err
    start_worker(sqlite_url)
    await all_back(producer, 3)
    done = await dead_letters("replay", "--status", "413", "--wait")
    assert (done.code, "1 served, 0 refused again." in done.out) == (0, True)
    done = await dead_letters("replay", "--all", "--wait")
    assert done.code == 1
    assert "2 sent again." in done.out
    assert "0 served, 2 refused again." in done.out
    await all_back(producer, 2)
    assert {run["idempotency_key"] for run in await fetch_runs(sqlite_url)} == {"large"}


async def test_they_are_sent_again_as_they_were(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, dead_letters: Callable[..., Any]
) -> None:
    large = {"flow_id": FLOW_ID, "idempotency_key": "large", "parameters": {"x": "x" * 300}}
    await refuse(
        start_worker, producer, sqlite_url, {"flow_id": 1}, large, {"flow_id": 2}, headers={"colour": "red"}
    )
    start_worker(sqlite_url)
    done = await dead_letters("replay", "--status", "413")
    assert (done.code, done.out.strip()) == (0, "1 sent again.")
    async with asyncio.timeout(180):
        while sum(map(len, producer.replies.values())) < 4:
            await asyncio.sleep(0.05)
    (replies,) = (each for each in producer.replies.values() if len(each) == 2)
    assert [reply.status for reply in replies] == [413, 201]
    assert [run["idempotency_key"] for run in await fetch_runs(sqlite_url)] == ["large"]
    assert {each["status"] for each in await listed(dead_letters)} == {422}
    # A request refused again is a dead letter again, with its producer's headers and new ones of
    # ours.
    ids = [each["id"] for each in await listed(dead_letters)]
    assert "1 sent again" in (await dead_letters("replay", ids[0])).out
    await all_back(producer, 2)
    assert sorted(each["id"] for each in await listed(dead_letters)) == sorted(ids)
    letters = await producer.dead_letters(2)
    assert [letter.headers["colour"] for letter in letters] == ["red", "red"]


async def test_many_are_sent_again_while_they_come_back(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, dead_letters: Callable[..., Any]
) -> None:
    start_worker(sqlite_url)
    for number in range(250):
        await producer.publish({"flow_id": number})
    await all_back(producer, 250)
    assert "250 sent again" in (await dead_letters("replay", "--all")).out
    await all_back(producer, 250)
    assert len({letter.raw for letter in await producer.dead_letters(250)}) == 250


async def test_none_stays_behind_and_none_becomes_another_message(
    start_worker: StartWorker,
    producer: Producer,
    sqlite_url: str,
    amqp_url: str,
    dead_letters: Callable[..., Any],
) -> None:
    """More letters than a broker accepts acknowledgements for at once, some of them without a
    message id.
    """
    await refuse(start_worker, producer, sqlite_url, {"flow_id": 1})
    assert (await dead_letters("purge", "--all", "--yes")).code == 0
    published = [f"request-{number}" for number in range(90)]
    await publish(
        amqp_url,
        (
            Sent(each, None, "", frames(each, b"{}", None, producer.queue, producer.reply_to))
            for each in published
        ),
    )
    start_worker(sqlite_url)
    await producer.replies_to(published)
    await all_back(producer, 90)
    ids = {each["id"] for each in await listed(dead_letters, "--limit", "1000")}
    done = await dead_letters("replay", "--all")
    assert (done.code, done.out.strip()) == (0, "90 sent again.")
    async with asyncio.timeout(180):
        while not all(len(producer.replies[each]) == 2 for each in published):
            await asyncio.sleep(0.02)
    await all_back(producer, 90)
    # A letter that returns does so when the command's channel closes, which was before it ended.
    letters = await producer.dead_letters(90)
    assert await producer.depth(f"{producer.queue}.dead") == 0
    assert len(ids) == 90
    assert {letter.message_id for letter in letters} == {None}
    assert {letter.correlation_id for letter in letters} == set(published)


ODD = {
    "a double": {"headers": join_table([("ratio", b"d" + struct.pack(">d", 0.1))])},
    "a point in time in milliseconds": {
        "headers": join_table([("at", b"T" + struct.pack(">Q", 1_700_000_000_123))]),
        "timestamp": struct.pack(">Q", 1_700_000_000_123),
    },
    "microseconds": {"timestamp": struct.pack(">Q", 1_700_000_000_000_000)},
    "microseconds in a header": {
        "headers": join_table([("at", b"T" + struct.pack(">Q", 1_700_000_000_000_000))])
    },
    "text that is no UTF-8": {"headers": join_table([("latin", b"S\0\0\0\1\xe9")]), "app_id": b"\1\xe9"},
    "empty texts and tables": {"content_encoding": b"\0", "headers": bytes(4), "type": b"\0"},
    "a header name of 255 bytes": {"headers": join_table([("n" * 255, b"V"), ("\u00fc" * 127, b"t\1")])},
    "delivery mode 1": {"delivery_mode": b"\1"},
    "names of ours": {"headers": join_table([("x-original-app-id", b"x\0\0\0\4\3abc"), ("mine", b"V")])},
}


async def test_those_that_are_served_after_all_are_the_same_messages(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, amqp_url: str
) -> None:
    """They are refused for their size, replayed to a worker that accepts them, and then sent once
    more by their producer. Each makes one run, and no property prevents the answer.
    """
    body = json.dumps({"flow_id": FLOW_ID, "parameters": {"x": "x" * 300}}).encode()

    async def send_all() -> None:
        for odd, more in ODD.items():
            values = {
                "reply_to": short_string(producer.reply_to),
                "correlation_id": short_string(odd),
                "message_id": short_string(odd),
                **more,
            }
            raw = join(in_order(values))
            await publish_raw(amqp_url, producer.queue, int.from_bytes(raw[:2]), raw[2:], body)

    async def statuses(count: int) -> dict[str, list[int]]:
        async with asyncio.timeout(180):
            while any(len(producer.replies[odd]) < count for odd in ODD):
                await asyncio.sleep(0.02)
        return {odd: [reply.status for reply in producer.replies[odd]] for odd in ODD}

    worker = start_worker(sqlite_url, max_body_bytes=300)
    await send_all()
    assert await statuses(1) == {odd: [413] for odd in ODD}
    assert worker.terminate() == 0
    start_worker(sqlite_url)
    async with open_dead_letters(amqp_url, Topology(producer.queue)) as letters:
        assert await letters.replay(await letters.pick(Selection(status=413))) == len(ODD)
    assert await statuses(2) == {odd: [413, 201] for odd in ODD}
    await send_all()
    assert await statuses(3) == {odd: [413, 201, 200] for odd in ODD}
    assert len(await fetch_runs(sqlite_url)) == len(ODD)
    assert await producer.depth(f"{producer.queue}.dead") == 0


async def test_an_operator_with_another_user_sends_again_what_the_workers_user_sent(
    start_worker: StartWorker,
    producer: Producer,
    sqlite_url: str,
    amqp_url: str,
    rabbitmq: RabbitMQ,
    dead_letters: Callable[..., Any],
) -> None:
    """The broker closes a channel that publishes in another user's name."""
    await refuse(start_worker, producer, sqlite_url, {"flow_id": 1}, user_id="guest")
    start_worker(sqlite_url)
    name = f"operator-{producer.queue}"
    rabbitmq.ctl("add_user", name, "secret")
    rabbitmq.ctl("set_permissions", name, ".*", ".*", ".*")
    try:
        url = str(URL(amqp_url).with_user(name).with_password("secret"))
        done = await command("dead-letters", "replay", "--all", amqp_url=url, queue=producer.queue)
    finally:
        rabbitmq.ctl("delete_user", name)
    assert (done.code, done.out.strip()) == (0, "1 sent again."), done.err
    await all_back(producer, 1)
    (replies,) = producer.replies.values()
    assert [reply.status for reply in replies] == [422, 422]


async def test_what_cannot_be_sent_again_stays(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, dead_letters: Callable[..., Any]
) -> None:
    await refuse(start_worker, producer, sqlite_url, {"flow_id": 1}, {"flow_id": 2})
    await producer.channel.queue_delete(producer.queue)
    done = await dead_letters("replay", "--all")
    assert done.code == 1
    assert f"'{producer.queue}' does not stand" in done.err
    assert len(await listed(dead_letters)) == 2


async def test_they_are_thrown_away_when_that_is_confirmed(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, dead_letters: Callable[..., Any]
) -> None:
    await refuse(start_worker, producer, sqlite_url, {"flow_id": 1}, {"flow_id": 2}, {"flow_id": 3})
    (first, *_) = await listed(dead_letters)
    assert (await dead_letters("purge")).code == 2
    refused = await dead_letters("purge", "--all", stdin=b"n\n")
    assert refused.code == 1
    assert f"Throw 3 dead letters of {producer.queue} away?" in refused.out
    await all_back(producer, 3)
    assert len(await listed(dead_letters)) == 3
    assert "1 thrown away" in (await dead_letters("purge", first["id"], "--yes")).out
    assert first["id"] not in {each["id"] for each in await listed(dead_letters)}
    assert "2 thrown away" in (await dead_letters("purge", "--all", stdin=b"y\n")).out
    assert "no dead letters" in (await dead_letters("list")).out


async def test_hostile_letters_do_not_steer_the_terminal(
    producer: Producer, dead_letters: Callable[..., Any], amqp_url: str, queue: str
) -> None:
    await command("topology", "declare", amqp_url=amqp_url, queue=queue)
    hostile = aio_pika.Message(
        b"\xff\xfe not JSON",
        message_id="\x1b[31mred\n[bold]",
        headers={"x-error": "[red]\x1b]0;title\x07", "x-error-status": "no number"},
    )
    await producer.channel.default_exchange.publish(hostile, routing_key=f"{queue}.dead")
    for options in ([], ["--letters"]):
        await all_back(producer, 1)
        done = await dead_letters("list", *options)
        assert done.code == 0
        assert "\x1b]0" not in done.out
        assert "\x1b[31m" not in done.out
    assert "[red]" in done.out
    (letter,) = await listed(dead_letters)
    shown = await dead_letters("show", letter["id"], "--json")
    assert json.loads(shown.out)["body"] == {"base64": "//4gbm90IEpTT04="}
    page = await dead_letters("show", letter["id"])
    assert page.code == 0, page.err
    assert "message_id: \\x1b[31mred\\n[bold]" in page.out
    assert not {"\x1b", "\x07"} & set(page.out)


async def test_a_queue_that_does_not_stand_is_told(dead_letters: Callable[..., Any]) -> None:
    done = await dead_letters("list")
    assert done.code == 1
    assert "does not stand" in done.err


@pytest.mark.parametrize("doing", ["replay", "purge"])
async def test_an_id_that_no_letter_has_is_told_and_nothing_is_done(
    start_worker: StartWorker,
    producer: Producer,
    sqlite_url: str,
    dead_letters: Callable[..., Any],
    doing: str,
) -> None:
    await refuse(start_worker, producer, sqlite_url, {"flow_id": 1}, {"flow_id": 2})
    known = (await listed(dead_letters))[0]["id"]
    for options in ([], ["--yes"]) if doing == "purge" else ([],):
        for ids in (["nosuchid"], [known, "nosuchid"]):
            done = await dead_letters(doing, *ids, *options)
            assert done.code == 2
            assert "no dead letter has the id nosuchid" in done.err
            assert not done.out
            await all_back(producer, 2)
    empty = await dead_letters(doing, "")
    assert empty.code == 2
    await all_back(producer, 2)
    assert await producer.depth() == 0


MOVED = {
    "expired": ({"x-message-ttl": 1}, "expired: it expired before a worker took it"),
    "maxlen": ({"x-max-length": 1}, "maxlen: the request queue was full"),
    "rejected": ({}, "rejected: a consumer rejected it"),
    "delivery_limit": ({"x-queue-type": "quorum", "x-delivery-limit": 1}, "delivery_limit: it was delivered"),
}


@pytest.mark.parametrize("reason", MOVED)
async def test_why_the_broker_moved_a_letter_is_told(
    producer: Producer, dead_letters: Callable[..., Any], amqp_url: str, queue: str, reason: str
) -> None:
    await command("topology", "declare", amqp_url=amqp_url, queue=queue)
    arguments, said = MOVED[reason]
    origin = await producer.channel.declare_queue(
        f"{queue}.origin",
        durable=True,
        arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{queue}.dead", **arguments},
    )
    for _ in range(2 if reason == "maxlen" else 1):
        await producer.channel.default_exchange.publish(aio_pika.Message(b"{}"), origin.name)
    if reason in ("rejected", "delivery_limit"):
        for _ in range(1 if reason == "rejected" else 3):
            if (message := await origin.get(fail=False)) is not None:
                await message.reject(requeue=reason == "delivery_limit")
    await all_back(producer, 1)
    (letter,) = await listed(dead_letters)
    assert (letter["status"], letter["error"].startswith(f"moved by the broker: {said}")) == (None, True)
    assert letter["failed_at"] is not None
    await producer.channel.queue_delete(origin.name)


async def test_a_letter_without_any_reason_is_said_to_have_none(
    producer: Producer, dead_letters: Callable[..., Any], amqp_url: str, queue: str
) -> None:
    await command("topology", "declare", amqp_url=amqp_url, queue=queue)
    for headers in (
        {},
        {"x-death": "odd"},
        {"x-death": [7]},
        {"x-first-death-reason": "expired"},
        {"x-death": [{"reason": "new in RabbitMQ 9"}]},
    ):
        message = aio_pika.Message(str(headers).encode(), headers=headers)  # type: ignore[arg-type]
        await producer.channel.default_exchange.publish(message, f"{queue}.dead")
    errors = [each["error"] for each in await listed(dead_letters)]
    assert [error.split(":")[0] for error in errors] == ["unknown"] * 3 + ["moved by the broker"] * 2
    assert "expired before" in errors[3]
    assert errors[4] == "moved by the broker: new in RabbitMQ 9: unknown"


async def test_they_are_counted_by_cause(
    producer: Producer, dead_letters: Callable[..., Any], amqp_url: str, queue: str
) -> None:
    """Each of nine causes has its number, its times and examples, which 'show' takes."""
    await fill(amqp_url, queue, range(180), large=3000)
    done = await dead_letters("list", "--json")
    causes = [json.loads(line) for line in done.out.splitlines()]
    assert [(each["count"], len(each["examples"])) for each in causes] == [(20, 3)] * 9
    found = next(each for each in causes if each["reason"] == "There is no flow ….")
    assert (found["cause"], found["status"]) == ("409-95a849", 409)
    assert (found["first"], found["last"]) == ("2026-11-30T12:00:00+00:00", "2026-11-30T12:02:51+00:00")
    await all_back(producer, 180)
    letters = await listed(dead_letters, "--cause", found["cause"])
    assert [each["idempotency_key"] for each in letters] == [f"order-{number}" for number in range(0, 180, 9)]
    assert [each["id"] for each in letters[-3:]] == found["examples"][::-1]
    await all_back(producer, 180)
    shown = await command("dead-letters", "list", amqp_url=amqp_url, queue=queue, columns=80)
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "409-95a849  20 letters  2026-11-30 12:00:00 to 2026-11-30 12:02:51" in shown.out
    assert "180 of 180 dead letters, 9 causes" in " ".join(shown.out.split())


async def message_ids(producer: Producer, queue: str) -> list[str | None]:
    """Of the messages in a queue, in its order. They are removed."""
    found: list[str | None] = []
    depth = await producer.depth(queue)
    async with asyncio.timeout(180), (await producer.channel.get_queue(queue)).iterator(no_ack=True) as all_:
        while len(found) < depth:
            found.append((await anext(all_)).message_id)
    return found


async def test_they_return_in_their_order_and_are_sent_again_in_it(
    producer: Producer, dead_letters: Callable[..., Any], amqp_url: str, queue: str
) -> None:
    await fill(amqp_url, queue, range(50), large=3000)
    for _ in range(2):
        assert len(await listed(dead_letters)) == 50
        await all_back(producer, 50)
    assert (await dead_letters("replay", "--cause", "409-95a849")).out.strip() == "6 sent again."
    ninths = [f"m-{number}" for number in range(0, 50, 9)]
    assert await message_ids(producer, queue) == ninths
    await all_back(producer, 44)
    others = [f"m-{number}" for number in range(50) if number % 9]
    assert await message_ids(producer, f"{queue}.dead") == others


async def test_a_replay_that_is_killed_loses_none_and_keeps_their_order(
    producer: Producer, dead_letters: Callable[..., Any], amqp_url: str, queue: str
) -> None:
    """At most the letters of one step are in both queues."""
    await fill(amqp_url, queue, range(1000), large=0)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "dead-letters", "replay", "--all"),
        env={**os.environ, "WORKER_AMQP_URL": amqp_url, "WORKER_QUEUE": queue},
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(180):
        while not await producer.depth(queue):
            await asyncio.sleep(0.002)
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    async with asyncio.timeout(180):  # its connections are gone, and what they held is back
        while await producer.depth(queue) + await producer.depth(f"{queue}.dead") < 1000:
            await asyncio.sleep(0.05)
    sent, left = await message_ids(producer, queue), await message_ids(producer, f"{queue}.dead")
    assert 0 < len(sent) < 1000
    assert sent == [f"m-{number}" for number in range(len(sent))]
    assert left == [f"m-{number}" for number in range(1000 - len(left), 1000)]
    assert 1000 <= len(sent) + len(left) <= 1000 + 2 * CHUNK


async def test_a_command_looks_once(
    producer: Producer, dead_letters: Callable[..., Any], amqp_url: str, queue: str
) -> None:
    """RabbitMQ counts each look."""
    await fill(amqp_url, queue, range(5), large=0)
    (first, *_) = await listed(dead_letters)
    looks = (("list",), ("show", first["id"]), ("purge", first["id"]), ("replay", "--status", "499"))
    for look in looks:
        await all_back(producer, 5)
        assert (await dead_letters(*look, stdin=b"n\n")).code in (0, 1)
    await all_back(producer, 5)
    for letter in await producer.dead_letters(5):
        assert letter.headers["x-delivery-count"] == 1 + len(looks)
