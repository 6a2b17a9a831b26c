"""The process of costly checks: its verdicts, its end, and an event loop without delays."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from worker.checks.checks import Checks, Limits, Pending
from worker.checks.jobs import Verdict

ENDLESS = json.dumps({"properties": {"x": {"pattern": "^(a+)+$"}}})
NEARLY = {"x": "a" * 60 + "!"}
DEPLOYMENT = UUID(int=1)


@asynccontextmanager
async def limited(**limits: Any) -> AsyncIterator[Checks]:
    checks = Checks(Limits(seconds=1.0, **limits))
    yield checks
    await checks.close()


@pytest.fixture
async def checks() -> AsyncIterator[Checks]:
    async with limited() as checks:
        yield checks


async def final(ask: Callable[[], Verdict]) -> Verdict:
    """The verdict, once it is known."""
    while True:
        try:
            return ask()
        except Pending as pending:
            await pending.ready


def parameters(
    checks: Checks, value: Any, schema: str = ENDLESS, deployment: UUID = DEPLOYMENT
) -> Callable[[], Verdict]:
    return lambda: checks.parameters(schema, value, deployment, 1000)


def rendered(checks: Checks, template: Any) -> Callable[[], Verdict]:
    run = uuid4()
    return lambda: checks.rendered(template, run, DEPLOYMENT, 1000)


def pid(checks: Checks) -> int:
    process = checks._process._process
    assert process is not None
    return process.pid


async def test_a_check_without_end_is_ended_and_the_next_is_made(checks: Checks) -> None:
    assert (await final(parameters(checks, {"x": "aaa"}))).outcome == "fits"
    first = pid(checks)
    wrong = await final(parameters(checks, {"x": "b"}))
    assert wrong.message == "Validation failed for field 'x'. Failure reason: 'b' does not match '^(a+)+$'"
    assert pid(checks) == first
    ended = await final(parameters(checks, NEARLY))
    assert (ended.outcome, ended.message) == ("costly", "it takes more than 1 seconds of CPU time")
    assert (await final(parameters(checks, {"x": "aa"}))).outcome == "fits"
    assert pid(checks) != first


async def test_what_takes_too_much_memory_is_ended_and_the_next_is_made(checks: Checks) -> None:
    for template in ("{{ 'a' * 10 ** 9 }}", "{% for a in range(99) %}{{ 'a' * 10 ** 6 }}{% endfor %}"):
        assert (await final(rendered(checks, template))).outcome == "costly"
        assert (await final(rendered(checks, "{{ 1 + 1 }}"))) == Verdict("text", "2")


async def test_a_process_that_somebody_else_ended_costs_nobody_a_verdict(checks: Checks) -> None:
    await final(parameters(checks, {"x": "a"}))
    os.kill(pid(checks), signal.SIGKILL)
    assert (await final(parameters(checks, {"x": "aa"}))).outcome == "fits"


async def test_while_it_can_not_be_started_nobody_is_refused(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/bin/false")
        asked = asyncio.create_task(final(parameters(checks, {"x": "a"})))
        await asyncio.sleep(1)
        assert not asked.done()
    assert (await asked).outcome == "fits"


async def test_a_circular_schema_is_refused_in_prefects_words(checks: Checks) -> None:
    """Python or Rust may notice the recursion."""
    first = None
    for number in range(20):
        schema: Any = {"$ref": "#", "properties": {"x": {"type": "string"}}}
        for _ in range(number):
            schema = {"$defs": {"a": schema}, "allOf": [{"$ref": "#"}]}
        found = await final(parameters(checks, {"x": 1}, json.dumps(schema)))
        assert (found.outcome, found.message[:22]) == ("unusable", "Invalid schema: Unable")
        first = first or pid(checks)
    assert pid(checks) == first


async def test_deployments_take_turns(checks: Checks) -> None:
    """The other deployment's check is served after the first of eight slow ones."""
    slow = [
        asyncio.create_task(final(parameters(checks, {"x": f"{'a' * 60}{number}!"}))) for number in range(8)
    ]
    await asyncio.sleep(0)
    assert (await final(parameters(checks, {"x": "a"}, deployment=uuid4()))).outcome == "fits"
    assert sum(each.done() for each in slow) <= 1
    for each in slow:
        each.cancel()


async def test_closing_ends_what_is_under_way(checks: Checks) -> None:
    asked = asyncio.create_task(final(parameters(checks, NEARLY)))
    await asyncio.sleep(0)
    while checks._process._process is None:
        await asyncio.sleep(0.01)
    ours = pid(checks)
    await checks.close()
    with pytest.raises(ProcessLookupError):
        os.kill(ours, 0)
    asked.cancel()


async def test_the_same_check_is_made_once(checks: Checks) -> None:
    with pytest.raises(Pending) as first:
        parameters(checks, {"x": "a"})()
    with pytest.raises(Pending) as second:
        parameters(checks, {"x": "a"})()
    assert first.value.ready is second.value.ready
    await first.value.ready
    assert parameters(checks, {"x": "a"})().outcome == "fits"


async def test_schemas_that_are_dropped_are_sent_again(checks: Checks) -> None:
    """The process keeps 2 MiB of them."""
    schemas = [json.dumps({"pattern": "a", "title": f"{number}" * 700_000}) for number in range(5)]
    for value in ("a", "ba"):
        for schema in schemas:
            assert (await final(parameters(checks, value, schema))).outcome == "fits"


async def test_without_room_a_check_waits_for_room() -> None:
    async with limited(waiting_bytes=100) as checks:
        asked = (final(parameters(checks, {"x": "a" * number})) for number in range(1, 20))
        assert {each.outcome for each in await asyncio.gather(*asked)} == {"fits"}


async def test_too_many_checks_and_too_long_a_wait_are_refused() -> None:
    async with limited(waiting=1, wait=0.0) as checks:
        with pytest.raises(Pending) as pending:
            parameters(checks, {"x": "a"})()
        assert "wait" in parameters(checks, {"x": "aa"})().message
        await pending.value.ready
        assert "waited" in parameters(checks, {"x": "a"})().message


async def test_the_ordinary_is_checked_at_once(checks: Checks) -> None:
    schema = json.dumps(
        {
            "type": "object",
            "properties": {
                "number": {"type": "integer", "title": "number", "position": 0},
                "name": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
                "model": {"$ref": "#/definitions/Model"},
            },
            "required": ["number"],
            "definitions": {"Model": {"type": "object", "properties": {"x": {"type": "number"}}}},
        }
    )
    fitting = {"number": 1, "name": None, "tags": ["a", "b"], "model": {"x": 1.5}}
    assert parameters(checks, fitting, schema)().outcome == "fits"
    assert parameters(checks, {"number": "x"}, schema)().outcome == "invalid"
    assert checks._process._process is None


async def test_the_process_has_none_of_the_workers_secrets(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_AMQP_URL", "amqp://a:secret@b")
    await final(parameters(checks, {"x": "a"}))
    assert b"secret" not in Path(f"/proc/{pid(checks)}/environ").read_bytes()


def test_the_process_ends_with_the_worker_even_amid_a_check() -> None:
    code = (
        "import asyncio, json, sys; from uuid import UUID; from worker.checks.checks import *\n"
        "async def main():\n"
        "    checks = Checks()\n"
        "    try: checks.parameters(json.dumps({'pattern': '^(a+)+$'}), 'a' * 60 + '!', UUID(int=1), 9)\n"
        "    except Pending: pass\n"
        "    while checks._process._process is None: await asyncio.sleep(0.01)\n"
        "    await asyncio.sleep(1)\n"
        "    print(checks._process._process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        lines = iter(worker.stdout)
        ours = next(int(line) for line in lines if line.strip().isdigit())
        worker.kill()
    while _runs(ours):
        pass


def _runs(pid: int) -> bool:
    """Whether a process runs, not counting a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
