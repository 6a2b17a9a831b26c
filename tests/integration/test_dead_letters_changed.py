"""``dead-letters``: a letter is explained, changed, checked, and sent again, as a user does it."""

import asyncio
import json
import os
import pty
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from tests.conftest import StartWorker
from tests.integration.test_dead_letters import all_back, listed, refuse
from tests.support.database import fetch_runs
from tests.support.letters import fill
from tests.support.producer import Producer
from tests.support.worker_process import ROOT

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
WRONG = {"flow_id": 1, "idempotency_key": "order-1", "tags": "red", "customer": 7}
Run = Callable[..., Any]


def editor(folder: Path, code: str) -> str:
    """The command of an editor that runs this code on the text of its file."""
    program = folder / "editor.py"
    program.write_text(
        "import json, pathlib, sys\npath = pathlib.Path(sys.argv[-1])\ntext = path.read_text()\n"
        f"{code}\npath.write_text(text)\n"
    )
    return f"'{sys.executable}' '{program}' --wait"


async def only(producer: Producer, queue: str) -> dict[str, Any]:
    """The body of the only message of a queue."""
    assert await producer.depth(queue) == 1
    message = await (await producer.channel.get_queue(queue)).get(no_ack=True)
    body: dict[str, Any] = json.loads(message.body)
    return body


async def test_a_letter_is_explained(
    start_worker: StartWorker,
    producer: Producer,
    sqlite_url: str,
    dead_letters: Run,
) -> None:
    await refuse(start_worker, producer, sqlite_url, WRONG, message_id="m-1")
    (letter,) = await listed(dead_letters)
    page = (await dead_letters("show", letter["id"][:6])).out
    for told in (
        letter["cause"],
        "A field is wrong",
        "exception_detail has the places",
        "body.flow_id: ",
        "body.tags: Input should be a valid list",
        "body.customer: Extra inputs are not permitted",
        "message_id: m-1",
        '"idempotency_key": "order-1"',
        f"flow-run-worker dead-letters replay --cause {letter['cause']}",
    ):
        assert told in page, page


async def test_a_letter_is_edited_checked_and_served(
    start_worker: StartWorker,
    producer: Producer,
    sqlite_url: str,
    dead_letters: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await refuse(start_worker, producer, sqlite_url, WRONG, headers={"colour": "red"})
    monkeypatch.delenv("VISUAL", raising=False)
    (letter,) = await listed(dead_letters)

    async def with_editor(code: str) -> Any:
        await all_back(producer, 1)
        monkeypatch.setenv("EDITOR", editor(tmp_path, code))
        return await dead_letters("replay", letter["id"], "--edit")

    unchanged = await with_editor("pass")
    assert (unchanged.code, unchanged.out.splitlines()) == (0, ["It was not changed.", "0 sent again."])
    failed = await with_editor("sys.exit(3)")
    assert (failed.code, "ended with exit code 3" in failed.err) == (2, True)
    still_wrong = await with_editor("text = text.replace('1,', '2,', 1)")
    assert still_wrong.code == 2
    assert "a worker would refuse it: 422: body.flow_id" in still_wrong.err
    kept = Path(next(word for word in still_wrong.err.split() if word.startswith("/")))
    assert json.loads(kept.read_text())["flow_id"] == 2
    kept.unlink()
    await all_back(producer, 1)
    assert await producer.depth() == 0
    start_worker(sqlite_url)
    mended = f"text = json.dumps({{'flow_id': '{FLOW_ID}', 'idempotency_key': 'order-1', 'name': 'mended'}})"
    done = await with_editor(mended)
    assert (done.code, done.out.strip()) == (0, "1 sent again."), done.err
    async with asyncio.timeout(180):
        while [run["name"] for run in await fetch_runs(sqlite_url)] != ["mended"]:
            await asyncio.sleep(0.05)
    assert await producer.depth(f"{producer.queue}.dead") == 0


async def test_fields_of_many_are_set_and_removed_or_nothing_is_sent(
    start_worker: StartWorker,
    producer: Producer,
    sqlite_url: str,
    dead_letters: Run,
) -> None:
    await refuse(start_worker, producer, sqlite_url, WRONG, {**WRONG, "idempotency_key": "order-2"})
    some = ("--set", f"flow_id={FLOW_ID}", "--set", "tags=[]")
    refused = await dead_letters("replay", "--status", "422", *some)
    assert (refused.code, refused.out) == (2, "")
    assert "body.customer: Extra inputs are not permitted; nothing was sent" in " ".join(refused.err.split())
    for wrong, told in (
        (("--set", "flow_id"), "is not PATH=VALUE"),
        (("--set", "tags.x.y=1"), "it has no tags.x.y"),
        (("--unset", "parameters.order"), "it has no parameters.order"),
        (("--edit",), "--edit takes one letter, and 2 match"),
        (("--edit", "--set", "tags=[]"), "leave out --set"),
        (("--wait", "--to", "elsewhere"), "leave out --to"),
        (("--to", f"{producer.queue}.dead"), "is the queue of the dead letters"),
    ):
        done = await dead_letters("replay", "--all", *wrong)
        assert (done.code, told in " ".join(done.err.replace("│", "").split())) == (2, True), done.err
        await all_back(producer, 2)
    start_worker(sqlite_url)
    some += ("--unset", "customer", "--set", "parameters.order.id=4711", "--set", "name=a b")
    done = await dead_letters("replay", "--status", "422", *some, "--wait")
    assert (done.code, "2 served, 0 refused again." in done.out) == (0, True), done.err
    runs = await fetch_runs(sqlite_url)
    assert {(run["name"], run["idempotency_key"]) for run in runs} == {("a b", "order-1"), ("a b", "order-2")}
    assert [json.loads(run["parameters"]) for run in runs] == [{"order": {"id": 4711}}] * 2


async def test_letters_go_to_another_queue(
    producer: Producer,
    dead_letters: Run,
    amqp_url: str,
    queue: str,
) -> None:
    await fill(amqp_url, queue, range(9), large=0)
    missing = await dead_letters("replay", "--key", "order-3", "--to", f"{queue}.missing")
    assert (missing.code, f"'{queue}.missing' does not stand" in missing.err) == (1, True)
    other = await producer.channel.declare_queue(f"{queue}.other")
    await all_back(producer, 9)
    done = await dead_letters("replay", "--key", "order-3", "--to", other.name)
    assert (done.code, done.out.strip()) == (0, "1 sent again."), done.err
    assert f"Sending 1 dead letter of {queue} to {other.name}." in done.err
    assert (await only(producer, other.name))["idempotency_key"] == "order-3"
    await other.delete()
    assert await producer.depth() == 0


async def on_terminal(typed: bytes, arguments: Sequence[str], **settings: str) -> tuple[int, str]:
    """Run a command whose standard input is a terminal. Returns its exit code and its output."""
    ours, its = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "dead-letters", *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        | {f"WORKER_{name.upper()}": value for name, value in settings.items()},
        stdin=its,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    os.close(its)
    os.write(ours, typed)
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 180)
    finally:
        os.close(ours)
    return process.returncode or 0, out.decode()


async def test_a_command_asks_before_it_acts(
    producer: Producer,
    dead_letters: Run,
    amqp_url: str,
    queue: str,
) -> None:
    await fill(amqp_url, queue, range(3), large=0)
    given = {"amqp_url": amqp_url, "queue": queue}
    for arguments, question in (
        (("replay", "--all"), f"Send 3 dead letters of {queue} again? [y/N]:"),
        (("purge", "--all"), f"Throw 3 dead letters of {queue} away? [y/N]:"),
    ):
        code, said = await on_terminal(b"what\nno\n", arguments, **given)
        assert code == 1
        assert said.count(question) == 2
        await all_back(producer, 3)
    unanswered = await dead_letters("purge", "--all")
    assert (unanswered.code, "add --yes" in unanswered.err) == (2, True)
    await all_back(producer, 3)
    code, said = await on_terminal(b"y\n", ("replay", "--key", "order-1"), **given)
    assert (code, "1 sent again." in said) == (0, True), said
    code, said = await on_terminal(b"", ("replay", "--key", "order-2", "--yes"), **given)
    assert (code, "1 sent again." in said) == (0, True), said
    assert await producer.depth() == 2


async def test_a_body_that_is_no_json_can_only_be_edited(
    producer: Producer,
    dead_letters: Run,
    amqp_url: str,
    queue: str,
) -> None:
    await fill(amqp_url, queue, [])
    message = aio_pika.Message(b"flow_id=7", headers={"x-error-status": 422})
    await producer.channel.default_exchange.publish(message, f"{queue}.dead")
    done = await dead_letters("replay", "--all", "--set", "flow_id=7")
    assert (done.code, "its body is no JSON: edit it" in done.err) == (2, True)
