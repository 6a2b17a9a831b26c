"""Waits for the ends of runs, in one event loop. All waits share one queue of states, on the
connection for requests.

Each wait binds the queue first, then has the run read, then listens. So it sees the end of the run,
whenever that comes. It does the same again after a lost connection, and once in a while.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from ..broker.connection import ChannelLost
from ..contract.errors import STATES_NOT_TOLD
from ..contract.record import FlowRunRecord
from ..contract.state import TERMINAL_STATES, TERMINAL_TYPES
from ..tasks.backoff import Backoff
from .attempt import SharedAttempt
from .errors import ClientError, FlowRunRefused, InvalidFlowRun, NotTaken, StatesNotTold, UnreadableReply
from .recent import Recent
from .reconnector import LONGEST_PAUSE, Reconnector
from .states_queue import StatesQueue, Told, forget_error

# A worker up to 0.2.0 refuses to read a run, and leaves a dead letter. While a fleet is updated,
# a read is tried again: this often at most, with pauses that double from the first to the longest,
# in seconds. That takes two to four minutes.
READ_TRIES = 9
FIRST_READ_PAUSE = 2.0
LONGEST_READ_PAUSE = 60.0
# Most seconds until a wait binds and reads again. An end is missed without that if an operator
# deletes the exchange, or if the run ends just before the first worker begins to publish states. A
# thousand waits make some two reads a second.
LOOK_AGAIN = 600.0
# Tries to bind, of a wait that was bound before, while the exchange is missing: some 45 seconds. A
# broker that came back without its data lacks it until a worker has connected again.
BIND_TRIES = 60
# A routing key that no state has. Binding it shows whether there is an exchange of states, and
# whether the user may bind to it.
_NO_STATE = "-"
_LONG_AGO = datetime.min.replace(tzinfo=UTC)

OnState = Callable[[FlowRunRecord], None]


@dataclass(slots=True, eq=False)
class Waiting:
    """A wait for the end of a run.

    Attributes:
        run_id: the run's id.
        on_state: is called with each state of the run that is seen, the last one included. Each
            state is given once.
        last: the run as it was known last: a record that was read, a published state, or None.
    """

    run_id: UUID
    on_state: OnState | None = None
    last: FlowRunRecord | Told | None = None
    _given: Recent = field(default_factory=Recent)

    def see_told(self, told: Told) -> None:
        """Note a published state. They come in their order."""
        self.last = told
        if self.on_state is not None and self._given.add(told.id) and (record := self.record()) is not None:
            self.on_state(record)

    def see_read(self, record: FlowRunRecord) -> None:
        """Note the run as it was read. That may be older or newer than the last published
        state.
        """
        known = self.record()
        if known is None or _since(record) >= _since(known):
            self.last = record
        if self.on_state is not None and self._given.add(str(record.state_id)):
            self.on_state(record)

    def record(self) -> FlowRunRecord | None:
        """The run as it was known last; None if it is not known, or can't be read."""
        try:
            return self.last.record() if isinstance(self.last, Told) else self.last
        except (ValueError, RecursionError):
            return None


def has_ended(record: FlowRunRecord) -> bool:
    """Whether a run is in a final state."""
    return record.state_type in TERMINAL_STATES


class Waits:
    """The waits of one event loop.

    Args:
        reconnector: has the connection.
        exchange: of the states.
        read: reads a run, by a request.
    """

    def __init__(
        self, reconnector: Reconnector, exchange: str, read: Callable[[UUID], Awaitable[FlowRunRecord]]
    ) -> None:
        self._reconnector = reconnector
        self._exchange = exchange
        self._read = read
        self._opening = SharedAttempt(self._open)
        self._queue: StatesQueue | None = None
        # Futures of the ends of runs, by the runs' ids.
        self._ends: dict[str, dict[Waiting, asyncio.Future[Told]]] = {}

    async def ready(self) -> None:
        """Return once states can be waited for. Raises the errors of :meth:`wait`."""
        losses = Backoff(longest=LONGEST_PAUSE)
        while True:
            try:
                await self._opened()
                return
            except ChannelLost:
                await losses.sleep()

    async def wait(self, waiting: Waiting) -> FlowRunRecord:
        """The record of the first final state that is seen.

        Raises:
            StatesNotTold: no worker publishes states.
            NotFound: the run does not exist.
            UnreadableReply: a record can't be read.
            ClientError: there is no connection, or a right is missing.
        """
        key = str(waiting.run_id)
        losses, bound = Backoff(longest=LONGEST_PAUSE), False
        self._ends.setdefault(key, {})
        try:
            while True:
                self._ends[key][waiting] = end = asyncio.get_running_loop().create_future()
                try:
                    await self._bind(key, again=bound)
                    bound = True
                    losses.reset()
                    if (record := await self._end(waiting, end)) is not None:
                        return record
                except ChannelLost:
                    await losses.sleep()
        finally:
            del self._ends[key][waiting]
            if not self._ends[key]:
                del self._ends[key]
                if self._queue is not None:
                    self._queue.unbind(_pattern(key))

    async def _bind(self, key: str, *, again: bool) -> None:
        """Bind the queue to a run's states.

        Args:
            again: it was bound before, so a missing exchange is waited for.
        """
        missing = Backoff(longest=LONGEST_PAUSE)
        while True:
            try:
                return await (await self._opened()).bind(_pattern(key))
            except StatesNotTold:
                if not again or missing.tries >= BIND_TRIES:
                    raise
            await missing.sleep()

    async def _end(self, waiting: Waiting, end: "asyncio.Future[Told]") -> FlowRunRecord | None:
        """Have the run read, and listen. None when it is time to do so again."""
        reading = asyncio.create_task(self._read_patiently(waiting.run_id))
        reading.add_done_callback(forget_error)
        try:
            await asyncio.wait((reading, end), return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not end.done():
                record = reading.result()
                waiting.see_read(record)
                if has_ended(record):
                    return record
            if not end.done():
                await asyncio.wait((end,), timeout=random.uniform(LOOK_AGAIN / 2, LOOK_AGAIN))
                if not end.done():
                    return None
            told = end.result()
        finally:
            reading.cancel()
        try:
            return told.record()
        except (ValueError, RecursionError) as wrong:
            error = f"The run has ended, and its record can't be read: {wrong}"
            raise UnreadableReply(error, None, told.body) from wrong

    async def _read_patiently(self, run_id: UUID) -> FlowRunRecord:
        """Read a run, again if an older worker refused that or the request queue was full."""
        pauses = Backoff(FIRST_READ_PAUSE, LONGEST_READ_PAUSE)
        while True:
            try:
                return await self._read(run_id)
            except NotTaken:
                pass
            except FlowRunRefused as refused:
                if refused.reason == STATES_NOT_TOLD:
                    raise StatesNotTold("No states are told here: WORKER_STATES is off.") from refused
                if not _is_of_older_worker(refused):
                    raise
                if pauses.tries + 1 >= READ_TRIES:
                    raise StatesNotTold(
                        f"No run can be read here: {READ_TRIES} times a worker answered that is older than "
                        "0.3.0."
                    ) from refused
            await pauses.sleep()

    async def _opened(self) -> StatesQueue:
        while self._queue is None:
            task = await self._opening.ended()
            if task.cancelled():
                raise ChannelLost("the queue of states was given up")
            error = task.exception()
            if isinstance(error, ClientError):
                raise type(error)(*error.args) from error  # each wait has an error of its own
            if isinstance(error, ChannelLost):
                raise ChannelLost(str(error)) from error
            if error is not None:
                raise error
        return self._queue

    async def _open(self) -> None:
        connection = await self._reconnector.connection()
        queue = await StatesQueue.open(
            connection, self._exchange, self._on_told, self._on_lost, key=_NO_STATE
        )
        if queue.is_lost:  # meanwhile
            raise ChannelLost(None)
        self._queue = queue

    def _on_lost(self) -> None:
        self._queue = None
        for ends in self._ends.values():
            for end in ends.values():
                if not end.done():
                    end.set_exception(ChannelLost(None))
                    end.exception()  # or asyncio warns of a future without a waiter

    def _on_told(self, told: Told) -> None:
        for waiting, end in self._ends.get(told.run_id, {}).items():
            if end.done():
                continue
            waiting.see_told(told)
            if told.type in TERMINAL_TYPES:
                end.set_result(told)


def _pattern(run_id: str) -> str:
    return f"*.*.*.{run_id}"


def _since(record: FlowRunRecord) -> datetime:
    return _LONG_AGO if record.state is None else record.state.timestamp


def _is_of_older_worker(refused: FlowRunRefused) -> bool:
    """Whether a worker took a read for a create request, which lacks its flow. Workers up to 0.2.0
    do.
    """
    missing = ["body", "flow_id"]
    return isinstance(refused, InvalidFlowRun) and any(each.get("loc") == missing for each in refused.errors)
