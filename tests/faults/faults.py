"""The faults around serving workers, each with its recovery. Tests use each alone; the soak mixes
them.
"""

import asyncio
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from tests.faults.crashing_worker import SEAMS
from tests.faults.load import Load
from tests.support.postgresql import PostgreSQL
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.supervisor import Supervisor

# The memory at which a node raises its alarm.
WATERMARK = "2GB"
# Free bytes on the full disk: less than PostgreSQL and SQLite grow a file by.
_DISK_LEFT = 4096
TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flow-run-worker'"
)


@dataclass
class Scene:
    """The parts of a system that a fault may disturb.

    Attributes:
        queue: the request queue's name.
        user: the workers' user at the broker.
        to_broker, to_database: the network between the workers and their servers. (SQLite has
            none.)
        disk: a small file system with the database on it; None if it can't be mounted.
        moments: the source of all random choices.
        haste: divides the durations of the soak.
    """

    broker: RabbitMQ
    cluster: PostgreSQL
    database_url: str
    queue: str
    user: str
    workers: Supervisor
    load: Load
    to_broker: Proxy
    to_database: Proxy
    disk: Path | None
    moments: random.Random
    haste: float = 1.0

    async def lasts(self, seconds: float) -> None:
        """Let a fault last for about this long in the soak."""
        await asyncio.sleep(seconds * self.moments.uniform(0.7, 1.3) / self.haste)

    async def sql(self, *statements: str, database: str | None = None) -> None:
        """Run statements as the owner, past the proxy."""
        name = database or self.database_url.rpartition("/")[2]
        connection = await asyncpg.connect(self.cluster.url(name).replace("+asyncpg", ""))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: its description.
        happens: causes it, and recovers from it.
        seen: text in a worker's log during it; None if it need not be logged.
        databases: with which databases it is possible.
    """

    name: str
    happens: Callable[[Scene], Awaitable[None]]
    seen: str | None = None
    databases: frozenset[str] = frozenset({"postgresql", "sqlite"})


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, *, seen: str | None = None, only: str | None = None
) -> Callable[[Callable[[Scene], Awaitable[None]]], Callable[[Scene], Awaitable[None]]]:
    """Add a function to the faults."""

    def add(happens: Callable[[Scene], Awaitable[None]]) -> Callable[[Scene], Awaitable[None]]:
        databases = frozenset({only} if only else {"postgresql", "sqlite"})
        FAULTS[name] = Fault(name, happens, seen, databases)
        return happens

    return add


# The worker's process


@fault("worker killed")
async def worker_killed(scene: Scene) -> None:
    for index in range(2):
        await scene.lasts(1)
        scene.workers.kill(index)


def _killed_at(seam: str) -> Callable[[Scene], Awaitable[None]]:
    async def killed(scene: Scene) -> None:
        worker = scene.workers.start_crashing(seam)
        await asyncio.to_thread(worker.process.wait, 300)

    return killed


for _seam in SEAMS:
    fault(f"worker killed {_seam}")(_killed_at(_seam))


@fault("worker restarted by SIGTERM")
async def worker_restarted(scene: Scene) -> None:
    assert await scene.workers.restart(scene.moments.randrange(8)) == 0


@fault("worker stopped for a while")
async def worker_frozen(scene: Scene) -> None:
    """As on a machine that swaps, or a virtual one that migrates."""
    async with scene.workers.frozen(scene.moments.randrange(8)):
        await scene.lasts(6)


# The broker


@fault("broker stopped and started", seen="broker_away")
async def broker_restarted(scene: Scene) -> None:
    await asyncio.to_thread(scene.broker.stop)
    await scene.lasts(3)
    await asyncio.to_thread(scene.broker.start)


@fault("broker killed and started", seen="broker_away")
async def broker_killed(scene: Scene) -> None:
    await scene.load.until_on_disk(scene.broker)
    await asyncio.to_thread(scene.broker.kill)
    await scene.lasts(3)
    await asyncio.to_thread(scene.broker.start)


@fault("connections closed by the broker", seen="session_lost")
async def connections_closed(scene: Scene) -> None:
    for _ in range(2):
        await asyncio.to_thread(scene.broker.ctl, "close_all_connections", "fault")
        await scene.lasts(1.5)


@fault("channel closed by the consumer timeout", seen="session_lost", only="postgresql")
async def channel_closed(scene: Scene) -> None:
    """The broker closes the channel of a consumer that holds deliveries for too long (30 minutes by
    default).
    """
    await _consumer_timeout(scene, 1000)
    async with _table_locked(scene):
        await asyncio.sleep(5)
    await _consumer_timeout(scene, 1_800_000)


async def _consumer_timeout(scene: Scene, milliseconds: int) -> None:
    """Both settings are read when a channel opens: the timeout, and how often the broker checks it
    (once a minute by default).
    """
    for name, value in (("consumer_timeout", milliseconds), ("channel_tick_interval", 1000)):
        await asyncio.to_thread(scene.broker.ctl, "eval", f"application:set_env(rabbit, {name}, {value}).")
    await asyncio.to_thread(scene.broker.ctl, "close_all_connections", "new consumer timeout")
    await asyncio.sleep(1.5)


@fault("queue deleted and declared again", seen="session_lost")
async def queue_deleted(scene: Scene) -> None:
    """A deleted queue takes its messages along, so this empties it first."""
    async with scene.load.paused():
        await asyncio.to_thread(scene.broker.ctl, "delete_queue", scene.queue)


@fault("virtual host takes no connections", seen="connection limit (0) is reached")
async def virtual_host_full(scene: Scene) -> None:
    """The producers' connections are closed as well; they try again."""
    await asyncio.to_thread(scene.broker.ctl, "set_vhost_limits", '{"max-connections":0}')
    try:
        await asyncio.to_thread(scene.broker.ctl, "close_all_connections", "fault")
        await scene.lasts(4)
    finally:
        await asyncio.to_thread(scene.broker.ctl, "clear_vhost_limits")


@fault("workers may not publish", seen="access to exchange 'amq.default'")
async def permissions_changed(scene: Scene) -> None:
    """Permissions are checked when a channel opens, so this closes the connections."""
    set_permissions = ("set_permissions", scene.user, ".*")
    await asyncio.to_thread(scene.broker.ctl, *set_permissions, r"^(?!amq\.default$).*", ".*")
    try:
        await asyncio.to_thread(scene.broker.ctl, "close_all_user_connections", scene.user, "fault")
        await scene.lasts(4)
    finally:
        await asyncio.to_thread(scene.broker.ctl, *set_permissions, ".*", ".*")


@fault("dead-letter queue full", seen="dead_letters_not_taken")
async def dead_letters_full(scene: Scene) -> None:
    full = scene.broker.full(f"{scene.queue}.dead", 1)
    await asyncio.to_thread(full.__enter__)
    try:
        await scene.lasts(6)
    finally:
        await asyncio.to_thread(full.__exit__, None, None, None)


@fault("memory alarm blocks publishers", seen="broker_blocked")
async def memory_alarm(scene: Scene) -> None:
    await asyncio.to_thread(scene.broker.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
    await scene.lasts(4)
    await asyncio.to_thread(scene.broker.ctl, "set_vm_memory_high_watermark", "absolute", WATERMARK)


# The network


@fault("network to the broker slow")
async def broker_slow(scene: Scene) -> None:
    scene.to_broker.latency = 0.1
    await scene.lasts(5)
    scene.to_broker.latency = 0.0


@fault("network to the broker silent", seen="session_lost")
async def broker_silent(scene: Scene) -> None:
    """Longer than the heartbeat allows (see the scene's URL): both sides give up, on a busy machine
    with some delay.
    """
    seen = scene.workers.logged("session_lost")
    scene.to_broker.silence()
    try:
        await asyncio.sleep(8)
        async with asyncio.timeout(60):
            while scene.workers.logged("session_lost") == seen:
                await asyncio.sleep(0.2)
    finally:
        scene.to_broker.speak()


@fault("network to the broker cut", seen="session_lost")
async def broker_cut(scene: Scene) -> None:
    for _ in range(3):
        scene.to_broker.cut()
        await scene.lasts(1.5)


@fault("network to the database slow", only="postgresql")
async def database_slow(scene: Scene) -> None:
    scene.to_database.latency = 0.2
    await scene.lasts(5)
    scene.to_database.latency = 0.0


@fault("network to the database silent", only="postgresql")
async def database_silent(scene: Scene) -> None:
    scene.to_database.silence()
    await scene.lasts(8)
    scene.to_database.speak()


@fault("network to the database cut", seen="database_away", only="postgresql")
async def database_cut(scene: Scene) -> None:
    for _ in range(5):
        scene.to_database.cut()
        await scene.lasts(0.5)


# The database


@fault("database stopped and started", seen="database_away", only="postgresql")
async def database_restarted(scene: Scene) -> None:
    await asyncio.to_thread(scene.cluster.stop)
    await scene.lasts(5)
    await asyncio.to_thread(scene.cluster.start)


@fault("database killed and recovering", seen="database_away", only="postgresql")
async def database_killed(scene: Scene) -> None:
    await asyncio.to_thread(scene.cluster.kill)
    await scene.lasts(3)
    await asyncio.to_thread(scene.cluster.start)


@fault(
    "database read-only, as a standby until it is promoted", seen="read-only transaction", only="postgresql"
)
async def database_standby(scene: Scene) -> None:
    await asyncio.to_thread(scene.cluster.stop)
    await asyncio.to_thread(scene.cluster.start_as_standby)
    await scene.lasts(4)
    await scene.sql("SELECT pg_promote()")


@fault("database ends connections", seen="database_away", only="postgresql")
async def connections_ended(scene: Scene) -> None:
    for _ in range(5):
        await scene.sql(TERMINATE, database="postgres")
        await scene.lasts(0.5)


@fault("table locked for ten seconds", only="postgresql")
async def table_locked(scene: Scene) -> None:
    async with _table_locked(scene):
        await asyncio.sleep(10)


@fault("statement timeout", seen="statement timeout", only="postgresql")
async def statement_timeout(scene: Scene) -> None:
    name = scene.database_url.rpartition("/")[2]
    before = scene.workers.logged("statement timeout")
    await scene.sql(f"ALTER DATABASE {name} SET statement_timeout = 1", TERMINATE, database="postgres")
    async with _table_locked(scene):
        await asyncio.sleep(1.5)
        # On a busy machine, workers may need longer to reach this point.
        with suppress(TimeoutError):
            async with asyncio.timeout(60):
                while scene.workers.logged("statement timeout") == before:
                    await asyncio.sleep(0.2)
    await scene.sql(f"ALTER DATABASE {name} RESET statement_timeout", TERMINATE, database="postgres")


@asynccontextmanager
async def _table_locked(scene: Scene) -> AsyncIterator[None]:
    # Set at the start of the session: a 1 ms timeout may cancel a SET statement itself.
    url = scene.database_url.replace("+asyncpg", "")
    connection = await asyncpg.connect(url, server_settings={"statement_timeout": "0"})
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE flow_run IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


@fault("disk full", seen="database_away")
async def disk_full(scene: Scene) -> None:
    """Fill the database's file system up to the last page."""
    if scene.disk is None:
        return
    ballast = scene.disk / "ballast"
    free = shutil.disk_usage(scene.disk).free - _DISK_LEFT

    def fill() -> None:
        # The worker writes too, so the disk may fill up earlier.
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            for size in (1 << 20,) * (free >> 20) + (free % (1 << 20),):
                file.write(bytes(size))

    try:
        # This takes seconds, and the proxies run in this process.
        await asyncio.to_thread(fill)
        seen = scene.workers.logged("database_away")
        async with asyncio.timeout(180):
            while scene.workers.logged("database_away") == seen:
                await asyncio.sleep(0.2)
        await scene.lasts(3)
    finally:
        ballast.unlink()


@fault("file locked by another process", seen="database_away", only="sqlite")
async def file_locked(scene: Scene) -> None:
    connection = sqlite3.connect(scene.database_url.partition(":///")[2], timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    # Workers that start later wait for the lock only from then on.
    seen = scene.workers.logged("database_away")
    async with asyncio.timeout(180):
        while scene.workers.logged("database_away") == seen:
            await asyncio.sleep(0.5)
    await scene.lasts(4)
    connection.execute("ROLLBACK")
    connection.close()


def faults_for(database_url: str) -> list[Fault]:
    """The faults that are possible with a database."""
    dialect = "sqlite" if database_url.startswith("sqlite") else "postgresql"
    return [each for each in FAULTS.values() if dialect in each.databases]
