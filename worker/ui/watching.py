"""Reads workers and queues every few seconds, as ``top`` does, and keeps the last hour."""

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from yarl import URL

from worker.operate.top import QueueView, Top, View, WorkerView
from worker.settings import Settings
from worker.ui.history import History

log = structlog.get_logger(__name__)

# Seconds between two looks for the addresses of names.
RESOLVE_SECONDS = 15.0
# Seconds between two reads of a worker's readiness, if its metrics show no fault.
READINESS_SECONDS = 10.0
# Figures of this age, in seconds, are called old. A read takes some seconds at most, unless a
# broker falls silent.
OLD_SECONDS = 30.0
# The parts of a worker without which it serves no requests.
_SERVING = frozenset(("broker", "database", "deployment"))


@dataclass(frozen=True)
class Fault:
    """Something that is wrong now.

    Attributes:
        slight: requests are served in spite of it.
    """

    what: str
    why: str
    slight: bool = False


@dataclass(frozen=True)
class Seen:
    """The last view.

    Attributes:
        at: the time of the view (``time.monotonic``).
        reasons: by a worker's URL, what its ``/readyz`` says of a part that is not well.
    """

    view: View
    at: float = field(default_factory=time.monotonic)
    reasons: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def faults(self) -> list[Fault]:
        """The faults of the broker and of workers."""
        faults = []
        if (age := time.monotonic() - self.at) > OLD_SECONDS:
            faults.append(Fault("These figures are old", f"Nothing was read for {age:.0f} seconds."))
        if self.view.queue.error is not None:
            faults.append(Fault("No answer from the broker", self.view.queue.error))
        for worker in self.view.workers:
            if worker.error is not None:
                faults.append(Fault(f"No answer from {worker.url}", worker.error))
            for part, why in self.reasons.get(worker.url, {}).items():
                what = f"{worker.url}: {part.replace('_', ' ')}"
                faults.append(Fault(what, why, slight=part not in _SERVING))
        return faults

    @property
    def differing(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """The settings in which workers differ: by setting and value, the workers' URLs."""
        found: dict[str, dict[str, list[str]]] = {}
        having = [each for each in self.view.workers if each.settings]
        for name in sorted({name for each in having for name in each.settings}):
            for worker in having:
                found.setdefault(name, {}).setdefault(worker.settings.get(name, ""), []).append(worker.url)
        versions: dict[str, list[str]] = {}
        for worker in self.view.workers:
            if worker.error is None:
                versions.setdefault(worker.version, []).append(worker.url)
        return {name: values for name, values in {"version": versions, **found}.items() if len(values) > 1}


NOTHING = Seen(View(QueueView(0.0, error="not read yet"), (), 0.0))


class Watching:
    """The watch, in the background. :attr:`seen` and :attr:`history` have the results.

    Args:
        urls: the workers' side ports. A name that has several addresses stands for a worker each.
        interval: seconds between two reads.
    """

    def __init__(self, settings: Settings, urls: Sequence[str], interval: float) -> None:
        self._urls = [URL(url.rstrip("/")) for url in urls]
        self._interval = interval
        self._top = Top(urls, settings.amqp_url, settings.queue_names, "flow-run-worker ui")
        self._resolved_until = 0.0
        self._ready_until = 0.0
        self.seen = NOTHING
        self.history = History(interval)

    async def run(self) -> None:
        """Watch until cancelled."""
        self._top.urls = await self.resolved()
        async with self._top as top:
            while True:
                began = time.monotonic()
                try:
                    await self._look(top)
                except Exception:  # the edge: the next look may succeed
                    log.exception("look_failed")
                await asyncio.sleep(max(self._interval - (time.monotonic() - began), 0.1))

    async def _look(self, top: Top) -> None:
        if time.monotonic() > self._resolved_until:
            top.urls = await self.resolved()
        view = await top.view()
        reasons = await self._reasons(top, view)
        self.seen = Seen(view, reasons=reasons)
        self.history.add(view)

    async def _reasons(self, top: Top, view: View) -> Mapping[str, Mapping[str, str]]:
        """The parts with faults, by the worker's URL. Workers with a fault are asked each time, all
        workers once in a while.
        """
        everyone = time.monotonic() > self._ready_until
        if everyone:
            self._ready_until = time.monotonic() + READINESS_SECONDS
        answering = [each for each in view.workers if each.error is None]
        asked = [each.url for each in answering if everyone or not _is_well(each)]
        states = await asyncio.gather(*(top.readiness(url) for url in asked))
        found = {
            url: {part: why for part, why in state.items() if why != "ok"}
            for url, state in zip(asked, states, strict=True)
        }
        # Slight faults of the others are as they were.
        for worker in answering:
            before = self.seen.reasons.get(worker.url, {})
            if worker.url not in found:
                found[worker.url] = {part: why for part, why in before.items() if part not in _SERVING}
        return found

    async def resolved(self) -> Sequence[str]:
        """The URLs, with one for each address of a name."""
        self._resolved_until = time.monotonic() + RESOLVE_SECONDS
        found: dict[str, None] = {}
        for url in self._urls:
            found |= dict.fromkeys(await _addresses(url))
        return list(found)


async def _addresses(url: URL) -> list[str]:
    # A certificate names a host, no address.
    if url.scheme != "http" or url.host is None:
        return [str(url)]
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except OSError:
        return [str(url)]
    # One family: with two of them a worker would count twice.
    family = min(info[0] for info in infos)
    hosts = sorted({str(info[4][0]) for info in infos if info[0] == family})
    return [str(url)] if len(hosts) == 1 else [str(url.with_host(host)).rstrip("/") for host in hosts]


def _is_well(worker: WorkerView) -> bool:
    return worker.broker and worker.database and not worker.blocked and not worker.dead_letters_held
