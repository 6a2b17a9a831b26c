"""Has checks made: at once where that is sure to be quick, else in the process of its own, with the
verdict to be asked for again.
"""

import asyncio
import json
import marshal
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from time import monotonic
from typing import Any, Generic, TypeVar
from uuid import UUID

import structlog

from worker.checks.fairness import FairQueue
from worker.checks.jobs import PREPARE, Kind, Prepared, Verdict, block_references
from worker.checks.process import CantStart, CheckProcess
from worker.checks.schemas import NotOrdinary
from worker.checks.wire import Job
from worker.observability import metrics
from worker.tasks.backoff import Backoff

log = structlog.get_logger(__name__)

K = TypeVar("K")
V = TypeVar("V")

# What a check in the event loop may take, in microseconds of the estimate, which is mostly twice of
# what it takes.
AT_ONCE = 8000.0
# Schemas of more characters are prepared in the process: to prepare one takes some 0.2 us a
# character.
ORDINARY_MAX = 16 * 1024
# Schemas that are kept ready here, in characters; in memory they take some 20 times as much.
READY_MAX = 1024 * 1024
# Verdicts that are kept until they are asked for again, in characters, and for how many seconds: a
# request may have to wait for its database meanwhile.
VERDICTS_MAX = 8 * 1024 * 1024
VERDICT_SECONDS = 600.0
# What an entry of these takes besides its texts, in bytes.
ENTRY_SIZE = 500
# Seconds of CPU for one check, and for each byte of the value and of the schema besides: the
# library takes some 10 us for each small value, and 500 for each property of a new schema.
# Prefect's clients wait a minute.
CHECK_SECONDS = 5.0
CHECK_SECONDS_PER_BYTE = 20e-6
# Checks that wait: so many, of so many bytes together, and for so many seconds. The broker's
# consumer timeout is half an hour by default.
WAITING_MAX = 10_000
WAITING_SIZE_MAX = 64 * 1024 * 1024
WAIT_SECONDS = 300.0
# Characters of a rendered template at most. Parameters have 512 KiB in Prefect.
TEXT_MAX = 1024 * 1024
# How much longer than a request its answer may be, in characters (``ERROR_BODY_ROOM``). What is
# longer is left out there.
MESSAGE_ROOM = 64 * 1024


class Pending(Exception):
    """The verdict is not there yet: ask again once ``ready`` is done."""

    def __init__(self, ready: "asyncio.Future[None]") -> None:
        super().__init__("its check is under way")
        self.ready = ready


class Bounded(Generic[K, V]):
    """What was used last, up to a size."""

    def __init__(self, max_size: int) -> None:
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._max_size = max_size
        self._size = 0

    def get(self, key: K) -> V | None:
        """What is kept under this key."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep it, in place of what was used longest ago."""
        self._size += size - self._kept.pop(key, (None, 0))[1]
        self._kept[key] = value, size
        while self._size > self._max_size and len(self._kept) > 1:
            self._size -= self._kept.popitem(last=False)[1][1]


class _NotReady:
    """A schema that is not ordinary."""

    def takes_less(self, value: Any, microseconds: float) -> bool:
        return False

    def verdict(self, value: Any) -> Verdict:
        raise NotImplementedError


_NOT_READY = _NotReady()


@dataclass(slots=True)
class _Waiting:
    """A check that waits for its turn, or is under way."""

    key: bytes
    job: Job
    size: int
    since: float
    ready: "asyncio.Future[None]"


class Checks:
    """Makes the checks of one worker. Its methods are called from one event loop."""

    def __init__(self) -> None:
        self._ordinary: Bounded[tuple[Kind, str], Prepared] = Bounded(READY_MAX)
        self._blocks: Bounded[str, Mapping[str, UUID | str]] = Bounded(READY_MAX)
        self._alone: Bounded[tuple[str, str | None], Verdict] = Bounded(READY_MAX)
        self._verdicts: Bounded[bytes, tuple[float, Verdict]] = Bounded(VERDICTS_MAX)
        self._waiting: dict[bytes, _Waiting] = {}
        self._waiting_size = 0
        self._room: asyncio.Future[None] | None = None
        self._queue: FairQueue[UUID, _Waiting] = FairQueue()
        self._process = CheckProcess()
        self._running: asyncio.Task[None] | None = None

    def parameters(self, schema: str, parameters: Any, deployment: UUID, size: int) -> Verdict:
        """Check parameters against a deployment's schema.

        Args:
            schema: JSON.
            parameters: what is checked.
            deployment: whose run it is. Deployments have their checks made in turn.
            size: of the parameters as JSON, in bytes.

        Raises:
            Pending: ask again.
        """
        return self._check("parameters", schema, parameters, deployment, size)

    def job_variables(
        self, template: str, of_deployment: str | None, of_request: Any, deployment: UUID, size: int
    ) -> Verdict:
        """Check job variables against a work pool's base job template; as :meth:`parameters` does.

        Args:
            of_deployment: JSON; the deployment's job variables.
            of_request: those of the request, which go over them.
        """
        key = template, of_deployment
        if not of_request and (known := self._alone.get(key)) is not None:
            return known
        theirs = None if of_deployment is None else json.loads(of_deployment)
        verdict = self._check("job variables", template, [theirs, of_request], deployment, size)
        if not of_request and verdict.outcome != "costly":
            self._alone.put(key, verdict, len(template) + len(of_deployment or "") + ENTRY_SIZE)
        return verdict

    def blocks(self, template: str) -> Mapping[str, UUID | str]:
        """See :func:`block_references`."""
        found = self._blocks.get(template)
        if found is None:
            found = block_references(template)
            self._blocks.put(template, found, len(template) + ENTRY_SIZE)
        return found

    def rendered(self, template: Any, run: UUID, deployment: UUID, size: int) -> Verdict:
        """Render a jinja template, once for a run; as :meth:`parameters` does."""
        return self._elsewhere("template", run.hex, template, deployment, size)

    async def close(self) -> None:
        """End what is under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))
        await self._process.close()

    def _check(self, kind: Kind, text: str, value: Any, deployment: UUID, size: int) -> Verdict:
        if len(text) <= ORDINARY_MAX:
            ready = self._ready(kind, text)
            if ready.takes_less(value, AT_ONCE):
                return ready.verdict(value)
        return self._elsewhere(kind, text, value, deployment, size)

    def _ready(self, kind: Kind, text: str) -> Prepared:
        ready = self._ordinary.get((kind, text))
        if ready is None:
            try:
                ready = PREPARE[kind](text, at_once=AT_ONCE)
            except NotOrdinary:
                ready = _NOT_READY
            self._ordinary.put((kind, text), ready, len(text) + ENTRY_SIZE)
        return ready

    def _elsewhere(self, kind: Kind, text: str, value: Any, deployment: UUID, size: int) -> Verdict:
        digest = blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        # Version 2 has no references to what was said before, so that equal values give one text.
        data = marshal.dumps(value, 2)
        key = kind.encode() + digest + blake2b(data, digest_size=16).digest()
        known = self._verdicts.get(key)
        if known is not None and monotonic() - known[0] < VERDICT_SECONDS:
            return known[1]
        if key in self._waiting:
            raise Pending(self._waiting[key].ready)
        if len(self._waiting) >= WAITING_MAX:
            return Verdict("costly", f"{WAITING_MAX:,} checks wait for others before it")
        held = len(data) + len(text)
        if self._waiting and self._waiting_size + held > WAITING_SIZE_MAX:
            if monotonic() - next(iter(self._waiting.values())).since > WAIT_SECONDS / 2:
                return Verdict("costly", "too many checks wait for others before it")
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            raise Pending(self._room)
        seconds = CHECK_SECONDS + held * CHECK_SECONDS_PER_BYTE
        room = TEXT_MAX if kind == "template" else 2 * size + MESSAGE_ROOM
        job = Job(kind, digest, text, value, seconds, room)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[key] = _Waiting(key, job, held, monotonic(), ready)
        self._waiting_size += held
        metrics.checks_waiting.set(len(self._waiting))
        self._queue.put(deployment, waiting)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        raise Pending(ready)

    async def _run(self) -> None:
        """Make the checks that wait, one after the other."""
        backoff = Backoff()
        while (turn := self._queue.next()) is not None:
            waiting = turn.item
            waited = monotonic() - waiting.since
            if waited > WAIT_SECONDS:
                self._settle(waiting, Verdict("costly", f"it waited {waited:.0f} seconds for others"))
                continue
            while True:
                try:
                    verdict, seconds = await self._process.verdict(waiting.job)
                    break
                except CantStart as error:
                    log.error("check_process_not_started", error=str(error), waiting=len(self._waiting))
                    await backoff.sleep()
                except Exception:  # the edge: its request would wait for ever
                    log.exception("check_failed", deployment_id=str(turn.whose), kind=waiting.job.kind)
                    verdict, seconds = Verdict("costly", "the check itself fails"), 1.0
                    break
            backoff.reset()
            self._queue.spent(turn, seconds)
            metrics.checked(seconds, costly=verdict.outcome == "costly")
            if verdict.outcome == "costly":
                log.warning(
                    "check_ended",
                    deployment_id=str(turn.whose),
                    kind=waiting.job.kind,
                    reason=verdict.message,
                )
            self._settle(waiting, verdict)

    def _settle(self, waiting: _Waiting, verdict: Verdict) -> None:
        size = len(verdict.message) + ENTRY_SIZE
        self._verdicts.put(waiting.key, (monotonic(), verdict), size)
        del self._waiting[waiting.key]
        self._waiting_size -= waiting.size
        metrics.checks_waiting.set(len(self._waiting))
        if not waiting.ready.done():
            waiting.ready.set_result(None)
        if self._room is not None:
            room, self._room = self._room, None
            room.set_result(None)
