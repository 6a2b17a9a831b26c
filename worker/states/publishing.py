"""Publishes states with the records of their runs. Knows neither their order nor the cursor."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from time import monotonic
from uuid import UUID

import structlog

from worker.amqp.publication import Confirm, Publication
from worker.broker.messages import state_message
from worker.broker.publisher import Confirmation, Publisher
from worker.broker.size_limit import SizeLimit
from worker.contract.errors import Fault
from worker.contract.flow_run import FlowRun, odd_columns
from worker.contract.record import encode_state
from worker.observability import metrics
from worker.store.states import StatesReader, Written
from worker.tasks.backoff import Backoff
from worker.tasks.isolate import Failed, isolate
from worker.tasks.pace import Pace

log = structlog.get_logger(__name__)

# Most runs of one statement, and most characters of their JSON: a run of a megabyte takes up to 25
# times as much memory when decoded. 200 runs hold the event loop for 15 ms.
READ_RUNS = 200
READ_CHARACTERS = 2 * 1024 * 1024


class Publishing:
    """Publishes states to their exchange.

    Args:
        reader: reads the runs.
        publisher: for all states.
        another_publisher: opens a separate channel, to try a message's size.
        max_message_size: the broker's limit in bytes, until it shows a lower one.
        exchange: the exchange's name.
        pace: gives turns for large steps.
        refused_seconds: for how long a refused state is published again.

    Attributes:
        told: the number of published states.
    """

    def __init__(
        self,
        reader: StatesReader,
        publisher: Publisher,
        another_publisher: Callable[[], AbstractAsyncContextManager[Publisher]],
        *,
        max_message_size: int,
        exchange: str,
        pace: Pace,
        refused_seconds: float,
    ) -> None:
        self.told = 0
        self._reader = reader
        self._publisher = publisher
        self._size_limit = SizeLimit(max_message_size, another_publisher, publisher.raise_if_lost)
        self._exchange = exchange
        self._pace = pace
        self._refused_seconds = refused_seconds
        # A queue refused states until they were given up: further ones are tried once.
        self._given_up = False

    async def tell(self, states: Sequence[Written]) -> None:
        """Publish states in this order. Returns once the broker has confirmed all.

        A state is passed over if it was deleted, or its run can't be shown.

        Raises:
            Fault: the database is away or busy.
            ChannelLost: the channel ended.
        """
        sizes = await self._reader.sizes([state.id for state in states])
        metrics.states_passed_over("deleted", len(states) - len(sizes))
        published: list[tuple[Confirmation, list[str]]] = []
        for ids in _in_parts([state.id for state in states if state.id in sizes], sizes):
            runs = await self._runs(ids)
            await self._pace.turn()
            messages = [message for run in runs if (message := self._message(run)) is not None]
            messages = [each for each in messages if await self._fits(each)]
            types = [message.queue.partition(".")[0] for message in messages]
            published.append((await self._publisher.publish(messages), types))
            # One part is read while the last one is being confirmed.
            if len(published) > 1:
                await self._confirmed(*published.pop(0))
        for each in published:
            await self._confirmed(*each)

    async def _runs(self, ids: Sequence[UUID]) -> list[FlowRun]:
        results = await isolate(ids, self._reader.runs, stop=Fault)
        runs: list[FlowRun] = []
        for id_, result in zip(ids, results, strict=True):
            if isinstance(result, Failed):
                if isinstance(result.error, Fault):
                    raise result.error
                log.warning("state_passed_over", state_id=str(id_), error=str(result.error))
                metrics.states_passed_over("unreadable")
            elif result is None:
                metrics.states_passed_over("deleted")
            else:
                runs.append(result)
        return runs

    def _message(self, run: FlowRun) -> Publication | None:
        """The message of a run's state. None if the run can't be shown."""
        assert run.state is not None
        try:
            if odd := odd_columns(run):
                raise ValueError(f"no valid value in {', '.join(odd)}")
            body = encode_state(run, run.state, datetime.now(UTC))
            return state_message(self._exchange, run, run.state, body)
        except Exception as error:  # the edge: one state harms no other
            log.warning("state_passed_over", state_id=str(run.state.id), error=str(error))
            metrics.states_passed_over("unreadable")
            return None

    async def _fits(self, message: Publication) -> bool:
        if message.size <= self._size_limit.taken or await self._size_limit.takes(message.size):
            return True
        log.warning("state_passed_over", routing_key=message.queue, error=f"{message.size:,} bytes")
        metrics.states_passed_over("too_large")
        return False

    async def _confirmed(self, confirmation: Confirmation, types: list[str]) -> None:
        """Wait for the confirms. Publish again what a bound queue refuses, for a while."""
        await confirmation.wait()
        left = _refused(confirmation)
        until = monotonic() + (0.0 if self._given_up else self._refused_seconds)
        backoff = Backoff()
        while left and monotonic() < until:
            log.warning("states_refused", exchange=self._exchange, states=len(left), tries=backoff.tries + 1)
            await backoff.sleep()
            confirmation = await self._publisher.publish(left)
            await confirmation.wait()
            left = _refused(confirmation)
        if left and not self._given_up:
            log.error("states_given_up", exchange=self._exchange, states=len(left), reason="a queue is full")
        self._given_up = bool(left)
        metrics.states_passed_over("refused", len(left))
        self.told += len(types)
        metrics.states_told(types)


def _refused(confirmation: Confirmation) -> list[Publication]:
    return [
        publication
        for publication, confirm in zip(confirmation.publications, confirmation.confirms, strict=True)
        if confirm is not Confirm.ACK
    ]


def _in_parts(ids: Sequence[UUID], sizes: dict[UUID, int]) -> Iterator[list[UUID]]:
    """Cut ids into parts that may be read at once. A run that is larger comes alone."""
    part: list[UUID] = []
    size = 0
    for each in ids:
        if part and (len(part) == READ_RUNS or size + sizes[each] > READ_CHARACTERS):
            yield part
            part, size = [], 0
        part.append(each)
        size += sizes[each]
    if part:
        yield part
