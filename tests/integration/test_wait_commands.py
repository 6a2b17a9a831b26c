"""``create --wait`` and ``states``, as a user runs them."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from tests.support.command import Done, command
from tests.support.published_states import Teller
from tests.support.worker_process import ROOT

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


@pytest.fixture
async def teller(amqp_url: str, queue: str) -> AsyncIterator[Teller]:
    async with Teller(amqp_url, queue) as teller:
        yield teller


async def create(amqp_url: str, queue: str, *arguments: str) -> Done:
    return await command("create", "--wait", *arguments, amqp_url=amqp_url, queue=queue)


@pytest.mark.parametrize(
    ("state", "code"), [("COMPLETED", 0), ("FAILED", 1), ("CRASHED", 1), ("CANCELLED", 1)]
)
async def test_exit_code_is_the_end_of_the_run(
    teller: Teller, amqp_url: str, queue: str, state: str, code: int
) -> None:
    running = asyncio.create_task(create(amqp_url, queue, "--deployment", "a/b"))
    while not teller.reads:
        await asyncio.sleep(0.05)
    (run_id,) = teller.runs
    await teller.tell(run_id, "RUNNING")
    await teller.tell(run_id, state)
    done = await running
    record: dict[str, Any] = json.loads(done.out)
    assert (done.code, done.err) == (code, "201 created\n")
    assert (record["id"], record["state_type"], record["state"]["type"]) == (str(run_id), state, state)


async def test_time_over_prints_the_last_record(teller: Teller, amqp_url: str, queue: str) -> None:
    done = await create(amqp_url, queue, "--flow-id", FLOW_ID, "--wait-timeout", "0.5")
    assert done.code == 1
    assert "has not ended within 0.5 seconds: it is Pending" in done.err
    assert UUID(json.loads(done.out)["id"]) in teller.runs


async def test_nobody_tells_states(amqp_url: str, queue: str) -> None:
    done = await create(amqp_url, queue, "--flow-id", FLOW_ID)
    assert (done.code, done.out) == (1, "")
    assert f"there is no exchange '{queue}.states'" in done.err
    followed = await command("states", amqp_url=amqp_url, queue=queue)
    assert (followed.code, followed.out) == (1, "")
    assert "No states are told here" in followed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "--flow-id", FLOW_ID, "--wait-timeout", "1"], "--wait-timeout: is for --wait"),
        (
            ["create", "--flow-id", FLOW_ID, "--wait", "--wait-timeout", "0"],
            "--wait-timeout: has to be above",
        ),
        (["create", "--flow-id", FLOW_ID, "--wait", "--no-reply"], "--wait: needs a reply"),
        (["create", "--flow-id", "x", "--wait"], "--flow-id: Input should be a valid UUID"),
        (["states", "--run", "x"], "--run: 'x' is no UUID"),
        (["states", "--deployment", "x"], "--deployment: 'x' is no UUID"),
    ],
)
async def test_wrong_usage(
    teller: Teller, amqp_url: str, queue: str, arguments: list[str], said: str
) -> None:
    done = await command(*arguments, amqp_url=amqp_url, queue=queue)
    assert (done.code, done.out) == (2, "")
    assert said in " ".join(done.err.replace("│", " ").split())
    assert teller.runs == {}


def takes_ctrl_c() -> None:
    """A shell's background processes ignore it, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def followed(amqp_url: str, queue: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "states", *arguments),
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            "WORKER_AMQP_URL": amqp_url,
            "WORKER_QUEUE": queue,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=takes_ctrl_c,
    )


async def test_states_are_followed_until_ctrl_c(teller: Teller, amqp_url: str, queue: str) -> None:
    run_id, other = teller.add(name="mine"), teller.add(name="other\x1b[2J")
    all_, ends, mine = (
        await followed(amqp_url, queue),
        await followed(amqp_url, queue, "--final", "--json"),
        await followed(amqp_url, queue, "--run", str(run_id).upper()),
    )
    processes = (all_, ends, mine)
    first = [asyncio.create_task(each.stdout.readline()) for each in processes if each.stdout]
    while not all(each.done() for each in first):
        await teller.tell(run_id, "COMPLETED")
        await asyncio.sleep(0.1)
    await teller.tell(other, "RUNNING")
    await teller.tell(other, "FAILED")
    last = await teller.tell(run_id, "CANCELLED")
    outputs: list[list[str]] = []
    for process, end in zip(processes, ("CANCELLED", str(last), "CANCELLED"), strict=True):
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or end not in lines[-1]:
            lines.append((await asyncio.wait_for(process.stdout.readline(), 60)).decode())
        outputs.append(lines)
    for process in processes:
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 60) == 130
        assert process.stderr is not None
        assert await process.stderr.read() in (b"", b"\n")
    everything, as_json, of_mine = outputs
    assert f"FAILED      other\\x1b[2J  {other}\n" in everything[-2]
    assert "RUNNING" in everything[-3]
    assert f"CANCELLED   mine  {run_id}\n" in everything[-1]
    assert [json.loads(each)["state_type"] for each in as_json[-2:]] == ["FAILED", "CANCELLED"]
    assert all(str(run_id) in line for line in of_mine)


async def test_ctrl_c_ends_a_wait(teller: Teller, amqp_url: str, queue: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "create", "--wait", "--flow-id", FLOW_ID),
        env={**os.environ, "PYTHONPATH": str(ROOT), "WORKER_AMQP_URL": amqp_url, "WORKER_QUEUE": queue},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=takes_ctrl_c,
    )
    while not teller.reads:
        await asyncio.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
