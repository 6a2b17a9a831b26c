"""The data of ``top``: rates between two reads of the workers' metrics pages and the broker's
queues. Draws nothing.
"""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Self

import aio_pika
import aiohttp
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError
from prometheus_client.parser import text_string_to_metric_families

from worker.amqp.watch import WatchedConnection
from worker.broker.connection import BrokerRefused, BrokerUnavailable, close_quietly, connect
from worker.contract.topology import QueueNames

# Longest wait for a page, in seconds.
PAGE_TIMEOUT = 2.0
# Longest wait for the broker's answer on an open connection, in seconds.
BROKER_TIMEOUT = 5.0
_TELLER = "flow_run_worker_states_teller"
_OURS = ("flow_run_worker_", "process_resident_memory_bytes")

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Page:
    """A worker's metrics page at one moment, or why there is none."""

    at: float
    samples: Mapping[tuple[str, Labels], float] = field(default_factory=dict)
    error: str | None = None

    @classmethod
    def parse(cls, at: float, text: str) -> Self:
        """Read a page's text. Raises ValueError for any other text."""
        samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            # NaN and infinities would spoil each sum.
            if sample.name.startswith(_OURS) and math.isfinite(sample.value)
        }
        return cls(at, samples)

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        wanted = labels.items()
        return sum(value for (each, has), value in self.samples.items() if each == name and wanted <= has)

    def labels(self, name: str) -> dict[str, str]:
        """The labels of a metric's only sample."""
        return next((dict(labels) for (each, labels) in self.samples if each == name), {})


@dataclass(frozen=True)
class WorkerView:
    """One worker between two reads. Rates are per second, times in seconds.

    Attributes:
        held_bytes: bytes of deliveries in flight.
        paused: whether reading is paused because too many bytes are held.
        blocked: whether an alarm at the broker blocks publishing.
        dead_letters_held: dead letters that their queue refuses.
        events_age: age of the oldest event that waits for Prefect's API. 0 in a worker that sends
            none.
        states: whether it publishes states. None if it is not set to.
        states_lag: seconds that visible states may have waited to be published.
        memory: resident memory of the process, in bytes.
        settings: those that the workers of a queue share (:attr:`worker.settings.Settings.shared`).
            Empty in workers before 0.3.0.
        create, reply: the 50th and the 99th percentile of a batch's time in that stage,
            interpolated within the histogram's buckets. None without a batch.
    """

    url: str
    error: str | None = None
    version: str = ""
    broker: bool = False
    database: bool = False
    created: float = 0.0
    existing: float = 0.0
    read: float = 0.0
    refused: float = 0.0
    redelivered: float = 0.0
    in_flight: int = 0
    held_bytes: int = 0
    paused: bool = False
    blocked: bool = False
    dead_letters_held: int = 0
    events_age: float = 0.0
    states: bool | None = None
    states_lag: float = 0.0
    memory: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    batch: float | None = None
    create: tuple[float, float] | None = None
    reply: tuple[float, float] | None = None

    @property
    def served(self) -> float:
        """Requests answered a second."""
        return self.created + self.existing + self.read + self.refused

    @classmethod
    def between(cls, url: str, before: Page, now: Page) -> Self:
        """Compare two pages of one worker."""
        if now.error is not None:
            return cls(url, error=now.error)
        if before.error is not None:
            # Without a page before, all that the worker ever did would count as new.
            before = now

        def grown(name: str, **labels: str) -> float:
            return _growth(before.total(name, **labels), now.total(name, **labels))

        seconds = max(now.at - before.at, 1e-9)
        batches = grown("flow_run_worker_batch_size_count")
        return cls(
            url,
            version=now.labels("flow_run_worker_build_info").get("version", ""),
            broker=now.total("flow_run_worker_dependency_up", dependency="broker") == 1,
            database=now.total("flow_run_worker_dependency_up", dependency="database") == 1,
            created=grown("flow_run_worker_requests_total", outcome="created") / seconds,
            existing=grown("flow_run_worker_requests_total", outcome="existing") / seconds,
            read=grown("flow_run_worker_requests_total", outcome="read") / seconds,
            refused=grown("flow_run_worker_requests_total", outcome="refused") / seconds,
            redelivered=grown("flow_run_worker_redelivered_total") / seconds,
            in_flight=int(now.total("flow_run_worker_in_flight")),
            held_bytes=int(now.total("flow_run_worker_in_flight_bytes")),
            paused=now.total("flow_run_worker_reading_paused") == 1,
            blocked=now.total("flow_run_worker_broker_blocked") == 1,
            dead_letters_held=int(now.total("flow_run_worker_dead_letters_held")),
            events_age=now.total("flow_run_worker_events_outbox_age_seconds"),
            states=now.total(_TELLER) == 1 if any(name == _TELLER for name, _ in now.samples) else None,
            states_lag=now.total("flow_run_worker_states_lag_seconds"),
            memory=int(now.total("process_resident_memory_bytes")),
            settings=now.labels("flow_run_worker_settings_info"),
            batch=grown("flow_run_worker_batch_size_sum") / batches if batches else None,
            create=_percentiles(before, now, "create"),
            reply=_percentiles(before, now, "reply"),
        )


def _in_flight(pages: Mapping[str, Page]) -> float:
    return sum(page.total("flow_run_worker_in_flight") for page in pages.values())


def _growth(before: float, now: float) -> float:
    """The growth of a counter. If it shrank, a new process began at zero."""
    return now - before if now >= before else now


def _percentiles(before: Page, now: Page, stage: str) -> tuple[float, float] | None:
    buckets: dict[float, float] = {}
    for (name, labels), value in now.samples.items():
        if name == "flow_run_worker_stage_seconds_bucket" and ("stage", stage) in labels:
            with suppress(KeyError, ValueError):  # no usable bound
                bound = float(dict(labels)["le"])
                buckets[bound] = _growth(before.samples.get((name, labels), 0.0), value)
    counts = sorted(buckets.items())
    if not counts or not counts[-1][1]:
        return None
    return quantile(counts, 0.5), quantile(counts, 0.99)


def quantile(buckets: Sequence[tuple[float, float]], q: float) -> float:
    """A quantile of a cumulative histogram, interpolated within its bucket, as PromQL's
    ``histogram_quantile`` does.

    Args:
        buckets: upper bounds and cumulative counts, in the order of the bounds. The last bound is
            infinite.
    """
    rank = q * buckets[-1][1]
    below, under = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if bound == float("inf"):
                return under
            return under + (bound - under) * (rank - below) / ((count - below) or 1.0)
        below, under = count, bound
    return under


@dataclass(frozen=True)
class QueueView:
    """The queues at one moment, or why they can't be read.

    Attributes:
        events: ready messages of the outbox. None without an outbox.
    """

    at: float
    ready: int = 0
    consumers: int = 0
    dead_letters: int = 0
    events: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class View:
    """The queues and the workers.

    Attributes:
        incoming: requests that arrive a second: those served, plus the growth of the queue.
    """

    queue: QueueView
    workers: Sequence[WorkerView]
    incoming: float

    @property
    def outgoing(self) -> float:
        """Requests answered a second."""
        return sum(worker.served for worker in self.workers)


class Top:
    """Reads the workers' pages and their queues. Use as an async context manager.

    Args:
        urls: the workers' side ports. They may change between two reads.
        amqp_url: the broker's URL.
        names: the workers' queues.
        program: the name of the connection at the broker.

    Attributes:
        urls: as given.
    """

    def __init__(
        self, urls: Sequence[str], amqp_url: str, names: QueueNames, program: str = "flow-run-worker top"
    ) -> None:
        self.urls = urls
        self._program = program
        self._amqp_url = amqp_url
        self._names = names
        self._connection: aio_pika.Connection | None = None
        self._channel: AbstractChannel | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(PAGE_TIMEOUT)
        self._http = await self._stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        try:
            self._queue, self._pages = await self._look()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        if self._connection is not None:
            await close_quietly(self._connection)

    async def view(self) -> View:
        """Read again. Rates are since the last read."""
        queue, pages = await self._look()
        workers = [
            WorkerView.between(url, self._pages.get(url, Page(0.0, error="new")), now)
            for url, now in pages.items()
        ]
        seconds = max(queue.at - self._queue.at, 1e-9)
        grown = queue.ready - self._queue.ready + _in_flight(pages) - _in_flight(self._pages)
        incoming = max(sum(worker.served for worker in workers) + grown / seconds, 0.0)
        self._queue, self._pages = queue, pages
        return View(queue, workers, incoming)

    async def readiness(self, url: str) -> Mapping[str, str]:
        """The state of each part in a worker's ``/readyz``: ``ok``, or the fault. Empty without an
        answer.
        """
        try:
            async with self._http.get(f"{url.rstrip('/')}/readyz") as response:
                state = await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return {}
        if not isinstance(state, dict):
            return {}
        return {str(name): value for name, value in state.items() if isinstance(value, str)}

    async def _look(self) -> tuple[QueueView, dict[str, Page]]:
        urls = [url.rstrip("/") for url in self.urls]
        pages = asyncio.gather(*(self._look_at_worker(url) for url in urls))
        return await self._look_at_queue(), dict(zip(urls, await pages, strict=True))

    async def _look_at_worker(self, url: str) -> Page:
        try:
            async with self._http.get(f"{url}/metrics", headers={"Accept": "text/plain"}) as response:
                response.raise_for_status()
                return Page.parse(time.monotonic(), await response.text())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return Page(time.monotonic(), error=str(error) or "no answer")

    async def _look_at_queue(self) -> QueueView:
        try:
            if self._channel is None or self._channel.is_closed:
                if self._connection is None or self._connection.is_closed:
                    self._connection = await connect(
                        self._amqp_url, name=self._program, connection_class=WatchedConnection
                    )
                self._channel = await self._connection.channel()
            async with asyncio.timeout(BROKER_TIMEOUT):
                counts = {
                    name: (await self._channel.get_queue(name)).declaration_result
                    for name in self._names.queues
                }
        except TimeoutError:
            connection, self._connection, self._channel = self._connection, None, None
            if connection is not None:
                await close_quietly(connection)
            return QueueView(time.monotonic(), error=f"No answer within {BROKER_TIMEOUT:g} seconds")
        except (BrokerUnavailable, BrokerRefused, AMQPError, OSError) as error:
            return QueueView(time.monotonic(), error=str(error))
        requests, dead = counts[self._names.queue], counts[self._names.dead_letter_queue]
        outbox = counts.get(self._names.events_queue)
        return QueueView(
            time.monotonic(),
            requests.message_count or 0,
            requests.consumer_count or 0,
            dead.message_count or 0,
            None if outbox is None else outbox.message_count or 0,
        )
