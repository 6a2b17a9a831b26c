"""``flow-run-worker bench``: how many requests a second the workers of this machine serve, and how long one takes.

Load comes from this process, the workers are processes of their own, queue and database are made for the run and removed
after it. Two modes. As fast as possible: the queue is filled first, then the workers start, and the replies are counted.
At a rate: each request has its time to be sent, and its latency counts from that time, sent late or not, so that a worker
that falls behind shows it (no coordinated omission).
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

import orjson
import sqlalchemy as sa
from pamqp import commands as spec

from worker.broker.channel import BulkChannel
from worker.broker.publication import PERSISTENT, Publication
from worker.broker.session import connect
from worker.broker.topology import Topology
from worker.broker.transport import BulkConnection
from worker.store import migrations
from worker.store.opening import parse_url
from worker.store.tables import flow_run

Body = Literal["small", "typical", "large"]
Progress = Callable[[int], None]

# How many are published or counted at a time.
CHUNK = 500
# How finely a rate is kept, in seconds: the loop's timers have this resolution, and a shorter wait would spin. A request
# that is sent so much late shows it in its latency.
TICK = 0.001


class BenchFailed(Exception):
    """A worker ended, or replies stayed away."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run showed.

    Attributes:
        rate: offered load in requests a second; 0 for as fast as possible.
        throughput: replies a second, from the first to the last.
        p50, p90, p99, p999: latency percentiles in milliseconds, from the time a request was due to its reply; None where
            the queue was filled first.
        cpu: CPU time of the workers in microseconds a request.
        memory: the largest resident memory of a worker in MiB.
    """

    database: str
    body: Body
    workers: int
    requests: int
    rate: float
    seconds: float
    throughput: float
    cpu: float
    memory: float
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    p999: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def request_body(kind: Body, flow_id: UUID, number: int) -> bytes:
    """A request: the endpoint's example (small), with 2 KB of parameters (typical), or with 200 KB (large)."""
    size = {"small": 0, "typical": 2_000, "large": 200_000}[kind]
    parameters: dict[str, Any] = {"number": number}
    if size:
        parameters["items"] = ["x" * 90] * (size // 93)
    return orjson.dumps(
        {
            "flow_id": flow_id,
            "name": f"bench-{number}",
            "parameters": parameters,
            "tags": ["bench"],
            "idempotency_key": f"bench-{number}",
        }
    )


async def measure(
    amqp_url: str,
    database_url: str | None,
    *,
    workers: int = 1,
    requests: int = 20_000,
    rate: float = 0.0,
    body: Body = "small",
    settings: dict[str, str] | None = None,
    command: Sequence[str] = (),
    flow_id: UUID | str | None = None,
    progress: Progress = lambda count: None,
) -> Measurement:
    """Run workers under load and measure.

    Args:
        database_url: None for a SQLite file that is removed afterwards; elsewhere only the runs of this run are removed.
        rate: requests a second; 0 for as fast as possible.
        settings: further environment variables for the workers.
        flow_id: a flow that exists, for a Prefect server's database.
        command: another program than the worker, for comparisons; it is given the broker's URL, the database's and the queue.
        progress: is told how many more replies have come.

    Raises:
        BenchFailed: no figures, and why.
    """
    flow_id = uuid4() if flow_id is None else UUID(str(flow_id))
    topology = Topology.from_queue_name(f"flow-runs-bench-{uuid4().hex[:8]}.create")
    with tempfile.TemporaryDirectory(prefix="flow-run-bench-") as folder:
        url = database_url or f"sqlite+aiosqlite:///{folder}/flow_runs.db"
        await migrations.ensure(parse_url(url), upgrade=True)
        environment = {
            "WORKER_AMQP_URL": amqp_url,
            "WORKER_DATABASE_URL": url,
            "WORKER_QUEUE": topology.queue,
            "WORKER_HTTP_PORT": "0",
            "WORKER_LOG_LEVEL": "warning",
            **(settings or {}),
        }
        async with _load(amqp_url, topology) as load:
            bodies = [request_body(body, flow_id, number) for number in range(min(requests, CHUNK))]

            def make(number: int) -> bytes:
                return bodies[number] if number < len(bodies) else request_body(body, flow_id, number)

            try:
                if rate:
                    async with _workers(workers, command, environment, Path(folder), load.consumers_on_queue):
                        await load.warm_up(flow_id)
                        before = _usage()
                        latencies, seconds = await load.at_rate(make, requests, rate, progress)
                else:
                    await load.fill(make, requests)
                    before = _usage()
                    async with _workers(workers, command, environment, Path(folder), None):
                        latencies, seconds = [], await load.count(requests, progress)
            finally:
                if database_url is not None:
                    await _forget(url, flow_id)
    cpu, memory = _usage()
    latencies.sort()

    def percentile(share: float) -> float | None:
        return round(latencies[min(int(len(latencies) * share), len(latencies) - 1)] * 1000, 2) if latencies else None

    return Measurement(
        database=parse_url(url).get_backend_name(),
        body=body,
        workers=workers,
        requests=requests,
        rate=rate,
        seconds=round(seconds, 3),
        throughput=round(requests / seconds, 1),
        cpu=round((cpu - before[0]) / requests * 1e6, 1),
        memory=round(memory / 1024, 1),
        p50=percentile(0.5),
        p90=percentile(0.9),
        p99=percentile(0.99),
        p999=percentile(0.999),
    )


class _Load:
    """Publishes requests and counts replies, on one connection, in bulk."""

    def __init__(self, connection: BulkConnection, out: BulkChannel, replies: BulkChannel, queue: str) -> None:
        self._connection = connection
        self._out = out
        self._replies = replies
        self._queue = queue
        self._reply_to = ""

    async def prepare(self) -> None:
        declared = await self._replies.queue_declare(exclusive=True)
        self._reply_to = declared.queue or ""
        await self._replies.basic_consume(self._reply_to, _ignored, no_ack=True)

    async def fill(self, make: Callable[[int], bytes], requests: int) -> None:
        """Publish all requests, and wait until the broker has them."""
        for start in range(0, requests, CHUNK):
            numbers = range(start, min(start + CHUNK, requests))
            confirmation = await self._out.publish([self._publication(make(number), number) for number in numbers])
            await confirmation.wait(60)

    async def count(self, requests: int, progress: Progress) -> float:
        """Seconds from the first reply to the last; the first batch opens the clock and is not counted in full."""
        started, missing = 0.0, requests
        while missing:
            taken = await self._take(missing)
            started = started or time.perf_counter()
            missing -= len(taken)
            progress(len(taken))
        return time.perf_counter() - started

    async def at_rate(
        self, make: Callable[[int], bytes], requests: int, rate: float, progress: Progress
    ) -> tuple[list[float], float]:
        """Latencies in seconds, and the seconds that it took."""
        started = time.perf_counter() + 0.05
        latencies: list[float] = []

        async def collect() -> None:
            while len(latencies) < requests:
                taken = await self._take(CHUNK)
                now = time.perf_counter()
                for delivery in taken:
                    latencies.append(now - started - int(delivery.message.correlation_id or 0) / rate)
                progress(len(taken))

        collecting = asyncio.create_task(collect())
        number = 0
        while number < requests:
            due = min(int((time.perf_counter() - started) * rate) + 1, requests)
            if due > number:
                await self._out.publish([self._publication(make(each), each) for each in range(number, due)])
                number = due
            await asyncio.sleep(max(TICK, started + number / rate - time.perf_counter()))
        await collecting
        return latencies, time.perf_counter() - started

    async def warm_up(self, flow_id: UUID) -> None:
        """A few requests that are not counted: connections, statements and code are warm after them."""
        numbers = range(-300, 0)
        await self._out.publish([self._publication(request_body("small", flow_id, number), 0) for number in numbers])
        missing = len(numbers)
        while missing:
            missing -= len(await self._take(missing))

    async def consumers_on_queue(self) -> int:
        """How many workers consume."""
        declared = await self._replies.queue_declare(self._queue, passive=True)
        return declared.consumer_count or 0

    async def _take(self, limit: int) -> list[Any]:
        try:
            async with asyncio.timeout(60):
                taken = await self._replies.deliveries.take(limit)
        except TimeoutError:
            raise BenchFailed("no reply for 60 seconds") from None
        if not taken:
            raise BenchFailed("the broker is gone")
        return taken

    def _publication(self, body: bytes, number: int) -> Publication:
        properties = spec.Basic.Properties(
            content_type="application/json",
            delivery_mode=PERSISTENT,
            reply_to=self._reply_to,
            correlation_id=str(number),
        )
        return Publication(self._queue, properties, body, numbered=True)


@asynccontextmanager
async def _load(amqp_url: str, topology: Topology) -> AsyncIterator[_Load]:
    connection = await connect(amqp_url, name="flow-run-worker bench")
    try:
        out, replies = await BulkChannel.open_on(connection), await BulkChannel.open_on(connection)
        await topology.declare(out)
        load = _Load(connection, out, replies, topology.queue)
        await load.prepare()
        try:
            yield load
        finally:
            for queue in (topology.queue, topology.dead_letter_queue):
                await replies.queue_delete(queue)
            if topology.exchange is not None:
                await replies.exchange_delete(topology.exchange)
    finally:
        await connection.close()


@asynccontextmanager
async def _workers(
    count: int,
    command: Sequence[str],
    environment: dict[str, str],
    folder: Path,
    consumers: Callable[[], Any] | None,
) -> AsyncIterator[None]:
    """Worker processes; with ``consumers`` it is waited until that many consume."""
    arguments = [environment[f"WORKER_{name}"] for name in ("AMQP_URL", "DATABASE_URL", "QUEUE")]
    program = [*command, *arguments] if command else [sys.executable, "-m", "worker", "run"]
    processes = []
    log = folder / "workers.log"
    with log.open("ab") as output:
        for _ in range(count):
            processes.append(await asyncio.create_subprocess_exec(*program, env={**os.environ, **environment}, stderr=output))
    try:
        while consumers is not None and await consumers() < count:
            if any(process.returncode is not None for process in processes):
                raise BenchFailed(f"a worker ended: {log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)
        yield
    finally:
        for process in processes:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        codes = [await process.wait() for process in processes]
    if any(codes) and not command:
        raise BenchFailed(f"workers ended with {codes}: {log.read_text()[-2000:]}")


async def _forget(url: str, flow_id: UUID) -> None:
    engine = migrations.engine_for(parse_url(url))
    async with engine.begin() as connection:
        await connection.execute(sa.delete(flow_run).where(flow_run.c.flow_id == flow_id))
    await engine.dispose()


def _usage() -> tuple[float, float]:
    """CPU seconds of all ended child processes, and the largest resident memory of one in KiB."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def draw(measurements: list[Measurement], path: Path) -> None:
    """Throughput and latency percentiles over offered load, as a picture.

    Raises:
        BenchFailed: matplotlib is not installed, or nothing was measured at a rate.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchFailed("--plot needs matplotlib: pip install matplotlib") from None
    offered = sorted((each for each in measurements if each.rate), key=lambda each: each.rate)
    if not offered:
        raise BenchFailed("--plot needs --rate, better several of them")
    figure = Figure(figsize=(9, 7), layout="constrained")
    served, latency = figure.subplots(2, 1, sharex=True)
    rates = [each.rate for each in offered]
    served.plot(rates, rates, linestyle=":", color="grey", label="offered")
    served.plot(rates, [each.throughput for each in offered], marker="o", label="served")
    served.set_ylabel("requests/s")
    served.legend()
    for name in ("p50", "p90", "p99", "p999"):
        latency.plot(rates, [getattr(each, name) for each in offered], marker="o", label="p99.9" if name == "p999" else name)
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter("{x:g}")
    latency.yaxis.set_minor_formatter("{x:g}")
    latency.set_ylabel("latency, ms")
    latency.set_xlabel("offered load, requests/s")
    latency.legend()
    first = offered[0]
    figure.suptitle(f"workers: {first.workers}, {first.database}, {first.body} bodies")
    figure.savefig(path)


async def _ignored(_: Any) -> None:
    """Replies are taken in bulk."""
