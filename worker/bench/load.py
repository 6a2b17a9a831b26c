"""The load: requests out and replies in, on one connection, in bulk, so that it takes little from
what it measures.

Three ways. All at once: the queue is filled first, then the workers start, and replies are counted.
At a rate (open loop): each request has its time to be sent, and its latency counts from that time,
sent late or not, so that a worker that falls behind shows it (no coordinated omission). By so many
at a time (closed loop): each is sent when one before it was answered.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, Literal
from uuid import UUID

import orjson
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from worker.broker.connection import PublishersBlocked, close_quietly, connect, unless_blocked
from worker.broker.fast_path import BulkPublisher, DeliveryReader
from worker.broker.properties import join, short_string
from worker.broker.publication import PERSISTENT, Publication
from worker.broker.publisher import Publisher
from worker.broker.topology import Topology
from worker.broker.transport import Connection
from worker.contract.delivery import Delivery
from worker.tasks.mailbox import Mailbox

Body = Literal["small", "typical", "large"]
Progress = Callable[[int], None]

# How many are published or counted at a time.
CHUNK = 500
# How finely a rate is kept, in seconds: the loop's timers have this resolution, and a shorter wait
# would spin. A request that is sent so much late shows it in its latency.
TICK = 0.001
# A reply that takes longer than this many seconds will not come.
PATIENCE = 60.0
WARM_UP = 300
# At a rate, this many seconds of it are not counted: the first tenths of a second would be a share
# of p99.
RUN_UP_SECONDS = 1.0


class BenchFailed(Exception):
    """No figures, and why: a worker ended, requests were refused, or replies stayed away."""


@dataclass(frozen=True, slots=True)
class Served:
    """What the load saw.

    Attributes:
        replies: how many came in these seconds.
        seconds: from the first request (all at once: from the first replies, which are not counted
            then) to the last reply.
        latencies: of each request in seconds; none where the queue was filled first.
    """

    replies: int
    seconds: float
    latencies: list[float]


@dataclass(frozen=True, slots=True)
class Requests:
    """The bodies of the requests of one run.

    Attributes:
        body: the endpoint's example (small), with 2 KB of parameters (typical), or with 200 KB
            (large).
        flow_id: of all of them.
        key: what their idempotency keys begin with, by which their runs are known again.
    """

    body: Body
    flow_id: UUID
    key: str

    def __call__(self, number: int) -> bytes:
        """The body of one of them."""
        size = {"small": 0, "typical": 2_000, "large": 200_000}[self.body]
        parameters: dict[str, Any] = {"number": number}
        if size:
            parameters["items"] = ["x" * 90] * (size // 93)
        return orjson.dumps(
            {
                "flow_id": self.flow_id,
                "name": f"bench-{number}",
                "parameters": parameters,
                "tags": ["bench"],
                "idempotency_key": f"{self.key}{number}",
            }
        )


class Load:
    """Publishes requests and takes their replies. Use :func:`open_load`.

    Attributes:
        statuses: whether replies say their status, as the worker's do; any but 201 is then an
            error.
        progress: is told how many more replies have come.
        answered: how many have come in all, with those that are not counted.
    """

    def __init__(
        self,
        publishers: dict[bool, Publisher],
        replies: Mailbox[Delivery],
        reply_to: str,
        requests: AbstractQueue,
        body: Callable[[int], bytes],
        type_: str = "",
    ) -> None:
        # Who waits for the reply needs no confirm of the request; only who doesn't has to know that
        # the broker has it.
        self._unconfirmed, self._confirmed = publishers[False], publishers[True]
        self._frames = self._confirmed.frames
        self._replies = replies
        self._reply_to = short_string(reply_to)
        self._requests = requests
        self._body = body
        self._type = {"type": short_string(type_)} if type_ else {}
        self.statuses = True
        self.progress: Progress = lambda count: None
        self.answered = 0

    async def fill(self, requests: int) -> None:
        """Publish all requests, and wait until the broker has them."""
        for start in range(0, requests, CHUNK):
            numbers = range(start, min(start + CHUNK, requests))
            self._raise_if_blocked()
            confirmation = await self._confirmed.publish([self._publication(number) for number in numbers])
            await confirmation.wait(PATIENCE)
            self._raise_if_blocked()
            if not confirmation.flawless:
                raise BenchFailed("the broker did not take the requests: is a limit set on its queues?")

    async def all_at_once(self, requests: int) -> Served:
        """Take the replies to requests that wait already; the first batch of them opens the clock
        and is not counted.
        """
        missing = counted = requests - len(await self._take(requests))
        started = time.perf_counter()
        while missing:
            missing -= len(await self._take(missing))
        if not counted:
            raise BenchFailed("all replies came together: take more requests")
        return Served(counted, time.perf_counter() - started, [])

    async def at_rate(self, requests: int, rate: float) -> Served:
        """Send so many requests a second, and take the replies."""
        return await self._paced(range(requests), rate)

    async def run_up(self, requests: int, rate: float) -> None:
        """The first moments at a rate, which are not counted; at most so many requests."""
        first = -WARM_UP - min(ceil(rate * RUN_UP_SECONDS), requests)
        await self._paced(range(first, -WARM_UP), rate, counted=False)

    async def _paced(self, numbers: range, rate: float, *, counted: bool = True) -> Served:
        started = (
            time.perf_counter() + 0.05 - numbers.start / rate
        )  # when number 0 is, or would have been due
        latencies: list[float] = []

        async def collect() -> None:
            while len(latencies) < len(numbers):
                taken = await self._take(CHUNK, counted=counted)
                now = time.perf_counter()
                latencies.extend(now - started - number / rate for number in map(_number, taken))

        collecting = asyncio.create_task(collect())
        try:
            number = numbers.start
            while number < numbers.stop and not collecting.done():
                due = min(floor((time.perf_counter() - started) * rate) + 1, numbers.stop)
                if due > number:
                    await self._send(range(number, due))
                    number = due
                await asyncio.sleep(max(TICK, started + number / rate - time.perf_counter()))
            await collecting
        finally:
            collecting.cancel()
        return Served(len(numbers), time.perf_counter() - started, latencies)

    async def in_turn(self, requests: int, concurrency: int) -> Served:
        """Have so many requests under way at a time."""
        started = time.perf_counter()
        sent: dict[int, float] = {}
        latencies: list[float] = []
        following = min(concurrency, requests)
        due = list(range(following))
        while len(latencies) < requests:
            now = time.perf_counter()
            sent.update((number, now) for number in due)
            if due:
                await self._send(due)
            taken = await self._take(concurrency)
            now = time.perf_counter()
            latencies.extend(now - sent.pop(_number(delivery)) for delivery in taken)
            due = list(range(following, min(following + len(taken), requests)))
            following += len(due)
        return Served(requests, time.perf_counter() - started, latencies)

    async def warm_up(self) -> None:
        """A few requests that are not counted: connections, statements and code are warm after
        them.
        """
        await self._send(range(-WARM_UP, 0))
        missing = WARM_UP
        while missing:
            missing -= len(await self._take(missing, counted=False))

    async def consumers_on_queue(self) -> int:
        """How many workers consume."""
        queue = await self._requests.channel.get_queue(self._requests.name)
        return queue.declaration_result.consumer_count or 0

    async def _take(self, limit: int, *, counted: bool = True) -> list[Delivery]:
        try:
            async with asyncio.timeout(PATIENCE):
                taken = await self._replies.take(limit)
        except TimeoutError:
            self._raise_if_blocked()
            raise BenchFailed(f"no reply for {PATIENCE:g} seconds") from None
        if not taken:
            raise BenchFailed("the broker is gone")
        if self.statuses:
            for delivery in taken:
                if delivery.message.headers.get("status") != 201:
                    reply = delivery.message.body[:500].decode(errors="replace")
                    raise BenchFailed(f"a request was not answered by a new run: {reply}")
        self.answered += len(taken)
        if counted:
            self.progress(len(taken))
        return taken

    async def _send(self, numbers: Iterable[int]) -> None:
        """Publish requests whose replies are waited for, and whose confirms are not."""
        self._raise_if_blocked()
        await self._unconfirmed.publish([self._publication(number) for number in numbers])

    def _raise_if_blocked(self) -> None:
        if self._frames.blocked is not None:
            raise BenchFailed(str(PublishersBlocked(self._frames.blocked)))

    def _publication(self, number: int) -> Publication:
        properties = join(
            {
                "content_type": _JSON,
                "delivery_mode": PERSISTENT,
                "correlation_id": short_string(str(number)),
                "reply_to": self._reply_to,
                **self._type,
            }
        )
        return Publication(self._requests.name, properties, self._body(number))


_JSON = short_string("application/json")


def _number(reply: Delivery) -> int:
    return int(reply.message.correlation_id or 0)


@asynccontextmanager
async def open_load(
    amqp_url: str, topology: Topology, body: Callable[[int], bytes], type_: str = ""
) -> AsyncIterator[Load]:
    """A load on a request queue that is made for it, and removed afterwards with all that belongs
    to it.

    Args:
        body: gives the body of a request by its number.
        type_: of the messages; none if empty.
    """
    connection = await connect(amqp_url, name="flow-run-worker bench", connection_class=Connection)
    try:
        publishers: dict[bool, Publisher] = {
            confirms: BulkPublisher(connection, await connection.channel(publisher_confirms=confirms))
            for confirms in (False, True)
        }

        async def try_out() -> AbstractChannel:
            await publishers[True].try_out()
            # During an alarm the broker may have taken that, and answers nothing behind it.
            return await connection.channel(publisher_confirms=False)

        channel = await unless_blocked(connection.frames, try_out())
        try:
            await topology.declare(channel)
            requests = await channel.get_queue(topology.queue)
            replies: Mailbox[Delivery] = Mailbox()
            reply_to = await _consume_replies(connection, channel, replies)
            yield Load(publishers, replies, reply_to, requests, body, type_)
        finally:
            # Whatever has become of the channels above.
            tidying = await connection.channel()
            for queue in (topology.queue, topology.dead_letter_queue):
                await tidying.queue_delete(queue)
            if topology.exchange is not None:
                await tidying.exchange_delete(topology.exchange)
    finally:
        await close_quietly(connection)


async def _consume_replies(
    connection: Connection, channel: AbstractChannel, replies: Mailbox[Delivery]
) -> str:
    """Consume from a reply queue, by the worker's own fast path; returns the queue's name."""
    queue = await channel.declare_queue(exclusive=True)
    number = channel.number or 0
    connection.frames.channels[number] = DeliveryReader(connection.frames, number, replies.put)

    async def never_called(_: AbstractIncomingMessage) -> None:
        """The reader takes them all."""

    channel.close_callbacks.add(lambda *_: replies.close())
    await queue.consume(never_called, no_ack=True)
    return queue.name
