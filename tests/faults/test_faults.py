"""Faults while producers keep publishing: nothing is lost, nothing is doubled, and no worker dies.

Some of them mixed; ``make test-long`` mixes all, once, and ``make soak`` for as long as wanted.
``WORKER_TEST_EACH_FAULT=1`` tests each alone as well.
"""

import asyncio
import os
from collections.abc import Sequence

import pytest
from rich.console import Console

from tests.faults.faults import FAULTS, Fault, Scene
from tests.faults.soak import WORKERS, soak

# Seconds between two requests of a producer; `make soak` publishes several times as many.
PAUSE = 0.03
ROLLS = int(os.environ.get("WORKER_TEST_ROLLS", "2"))
# On SQLite: the faults of the database, and of the process that has the file open.
ON_SQLITE = (
    "file locked by another process",
    "disk full",
    "worker killed",
    "worker killed after commit, before reply",
)
# One end of each part, without warning.
ENDS = (
    "worker killed after commit, before reply",
    "worker restarted by SIGTERM",
    "broker killed and started",
    "network to the broker cut",
    "database killed and recovering",
)
ALL = [fault.name for fault in FAULTS.values() if "postgresql" in fault.databases]
CASES = [
    *(("postgresql", fault) for fault in FAULTS.values() if "postgresql" in fault.databases),
    *(("sqlite", FAULTS[name]) for name in ON_SQLITE),
]


async def check(scene: Scene) -> None:
    """The end of every fault: settle, leave, count."""
    await asyncio.sleep(0.5)
    await scene.load.stop()
    await scene.load.settled()
    assert set(await scene.workers.stop()) == {0}
    verdict = await scene.load.verdict(scene.database_url)
    print(verdict)
    assert verdict.published > 50, verdict
    assert verdict.sound, verdict
    assert scene.workers.died == []


# All of them on PostgreSQL are two tests, as they take minutes.
@pytest.mark.parametrize(
    ("scene", "names"),
    [
        pytest.param(("postgresql", False), ENDS, id="postgresql"),
        pytest.param(("postgresql", True), ALL[::2], id="postgresql 1 of 2", marks=pytest.mark.long),
        pytest.param(("postgresql", True), ALL[1::2], id="postgresql 2 of 2", marks=pytest.mark.long),
        pytest.param(("sqlite", True), ON_SQLITE, id="sqlite"),
    ],
    indirect=["scene"],
)
async def test_mixed_faults(scene: Scene, names: Sequence[str]) -> None:
    """Three workers, each fault once, and a SIGTERM during some of them; WORKER_TEST_SEED decides
    the order.
    """
    faults = [FAULTS[name] for name in names if name != "disk full" or scene.disk]
    await scene.workers.start(WORKERS)
    scene.load.start(pause=PAUSE)
    injected, _ = await soak(scene, faults, Console())
    assert all(injected[fault.name] == 1 for fault in faults)
    await check(scene)


@pytest.mark.skipif(
    not os.environ.get("WORKER_TEST_EACH_FAULT"), reason="all are tested together; WORKER_TEST_EACH_FAULT=1"
)
@pytest.mark.parametrize(
    ("scene", "fault"),
    [((database, fault.name == "disk full"), fault) for database, fault in CASES],
    indirect=["scene"],
    ids=[f"{fault.name}, {database}" for database, fault in CASES],
)
async def test_nothing_lost_nothing_twice(scene: Scene, fault: Fault) -> None:
    """Two workers; one gets SIGTERM during the fault, unless the fault ends it."""
    if fault.name == "disk full" and scene.disk is None:
        pytest.skip("a file system of our own can't be mounted here")
    await scene.workers.start(2)
    scene.load.start(pause=PAUSE)
    await asyncio.sleep(0.5)
    happening = asyncio.create_task(fault.happens(scene))
    try:
        if not fault.name.startswith("worker"):
            await asyncio.sleep(1)
            assert await scene.workers.restart(0) == 0
    finally:
        await happening
    await check(scene)
    assert fault.seen is None or scene.workers.logged(fault.seen)


async def test_rolling_restarts(scene: Scene) -> None:
    """Three workers, restarted in turn: nothing is lost, and no finished request is repeated."""
    await scene.workers.start(3)
    scene.load.start(pause=PAUSE)
    for index in range(3 * ROLLS):
        assert await scene.workers.restart(index) == 0
        await asyncio.sleep(0.3)
    await check(scene)
    assert not scene.workers.logged("handed_back")
    assert {len(scene.load.replies[each]) for each in scene.load.requests} == {1}
