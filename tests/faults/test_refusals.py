"""A broker that refuses a worker's connections for a while, and one that restarts again and again.

The worker waits, logs the reason, and recovers. Nothing is lost, and the broker gives nothing
up. ``-s`` prints the durations.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.load import Load
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess

# Seconds of a refusal; the worker's pauses are up to ten seconds.
SECONDS = 4.0
PASSWORD = "secret"


@dataclass
class Served:
    """A worker with its own user at a broker, and producers with another."""

    broker: RabbitMQ
    user: str
    worker: WorkerProcess
    load: Load
    database_url: str

    async def ctl(self, *arguments: str) -> None:
        await asyncio.to_thread(self.broker.ctl, *arguments)

    async def readiness(self) -> tuple[int, dict[str, str]]:
        return await asyncio.to_thread(self.worker.readiness)

    async def thrown_out(self) -> None:
        """Close the worker's connections; the producers keep theirs."""
        await self.ctl("close_all_user_connections", self.user, "thrown out by the test")

    async def until(self, condition: Callable[[], bool]) -> float:
        """Seconds until a condition on the worker's process or log holds."""
        started = time.monotonic()
        async with asyncio.timeout(300):
            while not condition():
                assert self.worker.process.poll() is None, self.worker.output[-3000:]
                await asyncio.sleep(0.05)
        return time.monotonic() - started

    async def until_ready(self) -> float:
        started = time.monotonic()
        async with asyncio.timeout(300):
            while (await self.readiness())[0] != 200:
                await asyncio.sleep(0.05)
        return time.monotonic() - started

    async def until_answered(self) -> float:
        """Seconds until all requests published by now have an answer, while more come in."""
        published = len(self.load.requests)
        return await self.until(
            lambda: sum(each in self.load.replies for each in self.load.requests) >= published
        )

    async def check(self, *, delivered_again: int = 100) -> None:
        """The end of each test: all answered, none given up, and at most this many redeliveries."""
        await self.load.stop()
        await self.load.settled()
        again = await asyncio.to_thread(self.worker.metric, "flow_run_worker_redelivered_total")
        assert await asyncio.to_thread(self.worker.terminate) == 0, self.worker.output[-3000:]
        verdict = await self.load.verdict(self.database_url)
        print(f"{verdict}; delivered again: {again:.0f}")
        assert verdict.published > 50
        assert verdict.sound, verdict
        assert again <= delivered_again
        assert "Traceback" not in self.worker.output


@pytest.fixture
async def served(broker: RabbitMQ, queue: str, sqlite_url: str, tmp_path: Path) -> AsyncIterator[Served]:
    user = f"worker-{queue}"
    await asyncio.to_thread(broker.ctl, "add_user", user, PASSWORD)
    await asyncio.to_thread(broker.ctl, "set_permissions", user, ".*", ".*", ".*")
    worker = WorkerProcess(
        tmp_path / "worker.log",
        {
            "WORKER_AMQP_URL": f"amqp://{user}:{PASSWORD}@127.0.0.1:{broker.port}/",
            "WORKER_DATABASE_URL": sqlite_url,
            "WORKER_QUEUE": queue,
            "WORKER_HTTP_PORT": "0",
        },
    )
    try:
        async with Load(broker.url, queue, seed=1) as load:
            await asyncio.to_thread(worker.wait_until_logged, "serving")
            load.start(pause=0.02)
            served = Served(broker, user, worker, load, sqlite_url)
            await served.until(lambda: len(load.replies) > 20)
            yield served
    finally:
        worker.kill()
        await asyncio.to_thread(broker.ctl, "delete_user", user)


NO_CONNECTIONS = '{"max-connections":0}'
# Each refusal: its command, the command to undo it, the log text. ``USER`` is the worker's user.
REFUSALS = {
    "virtual host full": (
        ["set_vhost_limits", NO_CONNECTIONS],
        ["clear_vhost_limits"],
        "connection limit (0) is reached",
    ),
    "user's connections full": (
        ["set_user_limits", "USER", NO_CONNECTIONS],
        ["clear_user_limits", "USER", "all"],
        "connection limit (0) is reached",
    ),
    "password changed": (
        ["change_password", "USER", "another"],
        ["change_password", "USER", PASSWORD],
        "refuses the login",
    ),
    "no permission on the virtual host": (
        ["clear_permissions", "USER"],
        ["set_permissions", "USER", ".*", ".*", ".*"],
        "NOT_ALLOWED - access to vhost '/' refused for user",
    ),
    "may not publish": (
        ["set_permissions", "USER", ".*", r"^(?!amq\.default$).*", ".*"],
        ["set_permissions", "USER", ".*", ".*", ".*"],
        "access to exchange 'amq.default'",
    ),
    "may not consume": (
        ["set_permissions", "USER", ".*", ".*", "^$"],
        ["set_permissions", "USER", ".*", ".*", ".*"],
        "access to queue",
    ),
    "may do nothing": (
        ["set_permissions", "USER", "^$", "^$", "^$"],
        ["set_permissions", "USER", ".*", ".*", ".*"],
        "access to",
    ),
}


# Each of these is refused at the same step as another one.
LONG = ("user's connections full", "no permission on the virtual host", "may do nothing")


@pytest.mark.parametrize(
    "refusal", [pytest.param(each, marks=[pytest.mark.long] * (each in LONG)) for each in REFUSALS]
)
async def test_a_refusal_while_reconnecting_is_waited_out(served: Served, refusal: str) -> None:
    happens, undone, said = (
        [part.replace("USER", served.user) for part in each] if isinstance(each, list) else each
        for each in REFUSALS[refusal]
    )
    await served.ctl(*happens)
    await served.thrown_out()
    assert isinstance(said, str)
    try:
        await served.until(lambda: said in served.worker.output)
        seen, ready, ended = set(), 0, time.monotonic() + SECONDS
        while time.monotonic() < ended:
            status, state = await served.readiness()
            ready += status == 200
            seen.add(state["broker"])
            await asyncio.sleep(0.1)
        # It serves nothing, and logs that with the reason.
        assert any(said in each for each in seen), seen
        assert not ready, seen
    finally:
        await served.ctl(*undone)
    took, answered = await served.until_ready(), await served.until_answered()
    print(f"\n{refusal}: ready {took:.1f} s after it was undone, all answered {answered:.1f} s later")
    assert (await served.readiness())[1]["broker"] == "ok"
    await served.check()


@pytest.mark.parametrize("refusal", ["password changed", "may not publish", "may not consume"])
async def test_what_is_held_when_it_begins_is_delivered_once_more(served: Served, refusal: str) -> None:
    """This holds however often the worker reconnects. Each delivery counts for the limit."""
    happens, undone, said = REFUSALS[refusal]
    file = sqlite3.connect(served.database_url.partition(":///")[2], isolation_level=None)
    file.execute("BEGIN IMMEDIATE")
    await served.until(lambda: served.load.unanswered > 200)
    await served.load.stop()
    held = served.load.unanswered
    while await asyncio.to_thread(served.worker.metric, "flow_run_worker_in_flight") != held:
        await asyncio.sleep(0.1)
    await served.ctl(*(part.replace("USER", served.user) for part in happens))
    await served.thrown_out()
    try:
        # It returns once the database accepts writes, not before.
        await served.until(lambda: "session_lost" in served.worker.output)
        file.execute("ROLLBACK")
        file.close()
        await served.until(lambda: said in served.worker.output)
        await asyncio.sleep(SECONDS)
    finally:
        await served.ctl(*(part.replace("USER", served.user) for part in undone))
    await served.until_ready()
    await served.check(delivered_again=held)


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.long)])
async def test_a_broker_application_that_comes_and_goes(served: Served, times: int) -> None:
    """Each restart closes all connections, and may refuse new ones while it comes up."""
    for _ in range(times):
        await served.ctl("stop_app")
        await served.ctl("start_app")
    took = await served.until_ready()
    answered = await served.until_answered()
    print(f"\nready {took:.1f} s after the last start, all answered {answered:.1f} s later")
    await served.check(delivered_again=times * 100)  # each time the deliveries held then
