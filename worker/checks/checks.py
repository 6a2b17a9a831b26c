"""Makes a check at once if it is sure to be quick. Otherwise hands it to the separate process, and
the caller asks for the verdict again.
"""

import asyncio
import json
import marshal
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from time import monotonic
from typing import Any, Literal
from uuid import UUID

import structlog

from worker.checks.fairness import FairQueue
from worker.checks.jobs import PREPARE, TEXT_MAX, Kind, Prepared, Verdict, block_references
from worker.checks.ordinary import NotOrdinary
from worker.checks.process import CantStart, CheckProcess
from worker.checks.wire import Job
from worker.observability import metrics
from worker.tasks.backoff import Backoff
from worker.tasks.budget import Budget
from worker.tasks.cache import Cache

log = structlog.get_logger(__name__)

# Longest check in the event loop, in estimated microseconds. The real time is mostly half of that.
AT_ONCE = 8000.0
# Longer schemas, in characters, are prepared in the process: that takes some 0.2 us a character.
ORDINARY_MAX = 16 * 1024
# Most characters of schemas to keep prepared here. In memory a schema takes some 20 times its text.
READY_MAX = 1024 * 1024
# Most characters of verdicts to keep, and seconds to keep each: its request may wait for the
# database before it asks again.
VERDICTS_MAX = 8 * 1024 * 1024
VERDICT_SECONDS = 600.0
# Bytes that a cache entry takes besides its texts.
ENTRY_SIZE = 500
# Characters that an answer may have beyond its request's size (``ERROR_BODY_ROOM``). A longer
# message is left out there.
MESSAGE_ROOM = 64 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the checks in the process.

    Attributes:
        seconds, seconds_per_byte: CPU time of one check, and more for each byte of its value and
            schema. The library takes some 10 us for each small value, and 500 for each property of
            a new schema. Prefect's clients wait a minute.
        waiting: the number of waiting checks.
        waiting_bytes: their bytes in all.
        wait: the seconds that one waits. The broker's consumer timeout is half an hour by default.
    """

    seconds: float = 5.0
    seconds_per_byte: float = 20e-6
    waiting: int = 10_000
    waiting_bytes: int = 64 * 1024 * 1024
    wait: float = 300.0


LIMITS = Limits()


class Pending(Exception):
    """There is no verdict yet. Ask again once ``ready`` is done."""

    def __init__(self, ready: "asyncio.Future[None]") -> None:
        super().__init__("its check is under way")
        self.ready = ready


@dataclass(slots=True)
class _Waiting:
    """A check that waits for its turn or is running."""

    key: bytes
    job: Job
    size: int
    since: float
    ready: "asyncio.Future[None]"


class Checks:
    """Makes the checks of one worker. Its methods are called from one event loop."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._ordinary: Cache[tuple[Kind, str], Prepared | Literal[False]] = Cache(READY_MAX)
        self._blocks: Cache[str, Mapping[str, UUID | str]] = Cache(READY_MAX)
        self._alone: Cache[tuple[str, str | None], Verdict] = Cache(READY_MAX)
        self._verdicts: Cache[bytes, tuple[float, Verdict]] = Cache(VERDICTS_MAX)
        self._waiting: dict[bytes, _Waiting] = {}
        self._held = Budget(limits.waiting_bytes)
        self._queue: FairQueue[UUID, _Waiting] = FairQueue()
        self._process = CheckProcess()
        self._running: asyncio.Task[None] | None = None

    def parameters(self, schema: str, parameters: Any, deployment: UUID, size: int) -> Verdict:
        """Check parameters against a deployment's schema.

        Args:
            schema: JSON.
            parameters: the value to check.
            deployment: the run's deployment. Deployments take turns.
            size: the parameters' size as JSON, in bytes.

        Raises:
            Pending: there is no verdict yet.
        """
        return self._check("parameters", schema, parameters, deployment, size)

    def job_variables(
        self, template: str, of_deployment: str | None, of_request: Any, deployment: UUID, size: int
    ) -> Verdict:
        """Check job variables against a work pool's base job template, like :meth:`parameters`.

        Args:
            of_deployment: the deployment's job variables, as JSON.
            of_request: the request's job variables, which override the deployment's.
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
        """Render a jinja template, once for a run, like :meth:`parameters`."""
        return self._elsewhere("template", run.hex, template, deployment, size)

    async def close(self) -> None:
        """End the running check and its process."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))
        await self._process.close()

    def _check(self, kind: Kind, text: str, value: Any, deployment: UUID, size: int) -> Verdict:
        if len(text) <= ORDINARY_MAX:
            ready = self._ready(kind, text)
            if ready and ready.takes_less(value, AT_ONCE):
                return ready.verdict(value)
        return self._elsewhere(kind, text, value, deployment, size)

    def _ready(self, kind: Kind, text: str) -> Prepared | Literal[False]:
        """The prepared schema; False if it is not ordinary."""
        ready = self._ordinary.get((kind, text))
        if ready is None:
            try:
                ready = PREPARE[kind](text, at_once=AT_ONCE)
            except NotOrdinary:
                ready = False
            self._ordinary.put((kind, text), ready, len(text) + ENTRY_SIZE)
        return ready

    def _elsewhere(self, kind: Kind, text: str, value: Any, deployment: UUID, size: int) -> Verdict:
        digest = blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        # Version 2 has no back references, so equal values give equal bytes.
        data = marshal.dumps(value, 2)
        key = kind.encode() + digest + blake2b(data, digest_size=16).digest()
        known = self._verdicts.get(key)
        if known is not None and monotonic() - known[0] < VERDICT_SECONDS:
            return known[1]
        if key in self._waiting:
            raise Pending(self._waiting[key].ready)
        limits = self._limits
        if len(self._waiting) >= limits.waiting:
            return Verdict("costly", f"{limits.waiting:,} checks wait for others before it")
        held = len(data) + len(text)
        if not self._held.take(held):
            if monotonic() - next(iter(self._waiting.values())).since > limits.wait / 2:
                return Verdict("costly", "too many checks wait for others before it")
            raise Pending(asyncio.ensure_future(self._held.room(held)))
        seconds = limits.seconds + held * limits.seconds_per_byte
        room = TEXT_MAX if kind == "template" else 2 * size + MESSAGE_ROOM
        job = Job(kind, digest, text, value, seconds, room)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[key] = _Waiting(key, job, held, monotonic(), ready)
        metrics.checks_waiting.set(len(self._waiting))
        self._queue.put(deployment, waiting)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        raise Pending(ready)

    async def _run(self) -> None:
        """Make the waiting checks, one after the other."""
        backoff = Backoff()
        while (turn := self._queue.next()) is not None:
            waiting = turn.item
            waited = monotonic() - waiting.since
            if waited > self._limits.wait:
                self._settle(waiting, Verdict("costly", f"it waited {waited:.0f} seconds for others"))
                continue
            while True:
                try:
                    verdict, seconds = await self._process.verdict(waiting.job)
                    break
                except CantStart as error:
                    log.error("check_process_not_started", error=str(error), waiting=len(self._waiting))
                    await backoff.sleep()
                except Exception:  # the edge: its request must not wait for ever
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
        self._held.change(-waiting.size)
        metrics.checks_waiting.set(len(self._waiting))
        if not waiting.ready.done():
            waiting.ready.set_result(None)
