"""One measurement: worker processes under a load on a queue of its own, their CPU and memory."""

import resource
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from worker.bench.fleet import Fleet
from worker.bench.load import BenchFailed, Body, Load, Progress, Requests, Served, open_load
from worker.broker.topology import Topology
from worker.contract.errors import Fault
from worker.store import StoreError, migrations
from worker.store.engine import parse_url
from worker.store.tables import flow_run
from worker.tasks.collector import relieve_collector

# The reported percentiles of latencies.
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of requests: at a rate, a fixed number at a time, or (neither) all at once.

    Attributes:
        rate: requests a second (open loop).
        concurrency: requests under way at a time (closed loop).
    """

    rate: float = 0.0
    concurrency: int = 0

    def __str__(self) -> str:
        if self.rate:
            return f"{self.rate:,g}/s"
        return f"{self.concurrency:,} at a time" if self.concurrency else "all at once"


@dataclass(frozen=True, slots=True)
class Measurement:
    """The results of one run.

    Attributes:
        rate, concurrency: see :class:`Pace`.
        throughput: replies a second. All at once: from the first reply to the last.
        p50, p90, p99, p999: latency percentiles in milliseconds. At a rate they count from a
            request's due time. None if all came at once.
        cpu: CPU time of the workers in microseconds a request, with their start. The warm-up's
            requests count too.
        memory: the largest resident memory of a worker, in MiB.
    """

    database: str
    body: Body
    workers: int
    requests: int
    rate: float
    concurrency: int
    seconds: float
    throughput: float
    cpu: float
    memory: float
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    p999: float | None = None


async def measure(
    amqp_url: str,
    database_url: str | None,
    *,
    pace: Pace = Pace(),  # frozen
    workers: int = 1,
    requests: int = 20_000,
    body: Body = "small",
    settings: dict[str, str] | None = None,
    command: Sequence[str] = (),
    flow_id: UUID | None = None,
    progress: Progress = lambda count: None,
) -> Measurement:
    """Run workers under load and measure.

    Args:
        database_url: None for a temporary SQLite file. From other databases the created runs are
            removed afterwards.
        settings: further environment variables for the workers.
        flow_id: an existing flow, for a Prefect server's database.
        command: see :class:`worker.bench.fleet.Fleet`.
        progress: called with the number of further replies.

    Raises:
        BenchFailed: there are no figures.
        StoreError: the database's schema is missing or behind.
    """
    token = uuid4().hex[:8]
    topology = Topology(f"flow-runs-bench-{token}.create")
    with tempfile.TemporaryDirectory(prefix="flow-run-bench-") as folder:
        url = parse_url(database_url or f"sqlite+aiosqlite:///{folder}/flow_runs.db")
        schema = await migrations.ensure(url, upgrade=database_url is None)
        if schema.prefect and flow_id is None:
            raise BenchFailed(
                "This is a Prefect server's database, where a run needs a flow that exists: name one "
                "(--flow-id)."
            )
        made = Requests(body, flow_id or uuid4(), f"bench-{token}-")
        fleet = Fleet(
            amqp_url,
            url.render_as_string(hide_password=False),
            topology.queue,
            Path(folder),
            count=workers,
            command=command,
            settings=settings or {},
        )
        # A temporary file is removed with its folder.
        async with (
            nullcontext() if database_url is None else _forgotten(url, made),
            open_load(amqp_url, topology, made) as load,
        ):
            load.statuses = not command
            load.progress = progress
            relieve_collector()
            served, cpu, memory = await _serve(load, fleet, pace, requests)
    return Measurement(
        database=url.get_backend_name(),
        body=body,
        workers=workers,
        requests=requests,
        rate=pace.rate,
        concurrency=pace.concurrency,
        seconds=round(served.seconds, 3),
        throughput=round(served.replies / served.seconds, 1),
        cpu=round(cpu / load.answered * 1e6, 1),
        memory=round(memory / 2**20, 1),
        **_percentiles(served.latencies),
    )


async def _serve(load: Load, fleet: Fleet, pace: Pace, requests: int) -> tuple[Served, float, int]:
    """The load's results, the workers' CPU seconds (with their start), and a worker's largest
    resident memory in bytes.
    """
    together = not (pace.rate or pace.concurrency)
    if together:
        await load.fill(requests)
    before = _cpu_seconds()
    async with fleet.running(None if together else load.consumers_on_queue) as running:
        if together:
            served = await running.watch(load.all_at_once(requests))
        else:
            await running.watch(load.warm_up())
            if pace.rate:
                await running.watch(load.run_up(requests, pace.rate))
                served = await running.watch(load.at_rate(requests, pace.rate))
            else:
                served = await running.watch(load.in_turn(requests, pace.concurrency))
        memory = running.peak_memory()
    return served, _cpu_seconds() - before, memory


def _percentiles(latencies: list[float]) -> dict[str, float]:
    if not latencies:
        return {}
    latencies.sort()
    last = len(latencies) - 1
    return {
        name: round(latencies[min(int(len(latencies) * share), last)] * 1000, 2)
        for name, share in PERCENTILES.items()
    }


@asynccontextmanager
async def _forgotten(url: URL, made: Requests) -> AsyncIterator[None]:
    """Remove the runs afterwards. Check first that this is allowed."""
    theirs = sa.delete(flow_run).where(
        flow_run.c.flow_id == made.flow_id, flow_run.c.idempotency_key.startswith(made.key)
    )

    def forget(connection: Connection) -> None:
        connection.execute(theirs)  # deletes their states as well

    try:
        await migrations.with_connection(url, forget)
    except (StoreError, Fault) as error:
        raise BenchFailed(f"The runs could not be removed afterwards, so none are made: {error}") from error
    try:
        yield
    finally:
        try:
            await migrations.with_connection(url, forget)
        except (StoreError, Fault) as error:
            raise BenchFailed(
                f"Runs with idempotency keys that begin with '{made.key}' stayed behind: {error}"
            ) from error


def _cpu_seconds() -> float:
    """CPU seconds of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
