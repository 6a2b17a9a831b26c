"""The load: sends requests and receives replies in bulk on one connection, so that it takes little
CPU from the workers.

There are three modes. All at once: the queue is filled, then the workers start, and replies are
counted. At a rate (open loop): each request has a due time, and its latency counts from that time
even if it is sent late (no coordinated omission). In turn (closed loop): a fixed number of requests
is under way, and each reply sends the next request.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, Literal
from uuid import UUID

from aio_pika.abc import AbstractChannel, AbstractQueue

from worker.amqp.properties import join, short_string
from worker.amqp.publication import Publication
from worker.amqp.reading import read
from worker.amqp.transport import Connection
from worker.broker.connection import PublishersBlocked, connected, unless_blocked
from worker.broker.incoming import read_message
from worker.broker.messages import PERSISTENT
from worker.broker.publisher import Publisher
from worker.broker.topology import Topology
from worker.contract.delivery import Delivery
from worker.contract.encoding import dumps
from worker.contract.kinds import CREATE
from worker.contract.topology import QueueNames
from worker.tasks.mailbox import Mailbox

Body = Literal["small", "typical", "large"]
Progress = Callable[[int], None]

# Requests to publish, or replies to count, at a time.
CHUNK = 500
# Resolution of a rate, in seconds: that of the event loop's timers. A shorter wait would spin. The
# delay counts as latency.
TICK = 0.001
# Longest wait for a reply, in seconds.
PATIENCE = 60.0
WARM_UP = 300
# At a rate, these first seconds are not counted: the first tenths of a second would affect p99.
RUN_UP_SECONDS = 1.0


class BenchFailed(Exception):
    """There are no figures: a worker ended, requests were refused, or replies are missing."""


@dataclass(frozen=True, slots=True)
class Served:
    """The results of a load.

    Attributes:
        replies: the number of replies in these seconds.
        seconds: the time from the first request to the last reply. All at once: from the first
            replies, which are not counted.
        latencies: each request's latency in seconds. Empty if all came at once.
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
        flow_id: the flow of all requests.
        key: the prefix of their idempotency keys, which identifies their runs.
    """

    body: Body
    flow_id: UUID
    key: str

    def __call__(self, number: int) -> bytes:
        """The body of a request by its number."""
        size = {"small": 0, "typical": 2_000, "large": 200_000}[self.body]
        parameters: dict[str, Any] = {"number": number}
        if size:
            parameters["items"] = ["x" * 90] * (size // 93)
        return dumps(
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
        statuses: whether replies have a status, like the worker's. Then any but 201 is an error.
        progress: called with the number of further replies.
        answered: the number of all replies, with those not counted.
    """

    def __init__(
        self,
        publishers: dict[bool, Publisher],
        replies: Mailbox[Delivery],
        reply_to: str,
        requests: AbstractQueue,
        body: Callable[[int], bytes],
        type_: str = CREATE.type,
    ) -> None:
        # A request whose reply is awaited needs no confirm. Others do.
        self._unconfirmed, self._confirmed = publishers[False], publishers[True]
        self._frames = self._confirmed.frames
        self._replies = replies
        self._reply_to = short_string(reply_to)
        self._requests = requests
        self._body = body
        self._type = short_string(type_)
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
            if not confirmation.all_taken:
                raise BenchFailed("the broker did not take the requests: is a limit set on its queues?")

    async def all_at_once(self, requests: int) -> Served:
        """Take the replies to the requests in the queue. The first batch of replies starts the
        clock and is not counted.
        """
        missing = counted = requests - len(await self._take(requests))
        started = time.perf_counter()
        while missing:
            missing -= len(await self._take(missing))
        if not counted:
            raise BenchFailed("all replies came together: take more requests")
        return Served(counted, time.perf_counter() - started, [])

    async def at_rate(self, requests: int, rate: float) -> Served:
        """Send requests at a rate, in requests a second, and take the replies."""
        return await self._paced(range(requests), rate)

    async def run_up(self, requests: int, rate: float) -> None:
        """Send uncounted requests at a rate for ``RUN_UP_SECONDS``, ``requests`` at most."""
        first = -WARM_UP - min(ceil(rate * RUN_UP_SECONDS), requests)
        await self._paced(range(first, -WARM_UP), rate, counted=False)

    async def _paced(self, numbers: range, rate: float, *, counted: bool = True) -> Served:
        started = time.perf_counter() + 0.05 - numbers.start / rate  # the due time of number 0
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
        """Keep a fixed number of requests under way."""
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
        """Send a few uncounted requests, which warm up connections, statements and code."""
        await self._send(range(-WARM_UP, 0))
        missing = WARM_UP
        while missing:
            missing -= len(await self._take(missing, counted=False))

    async def consumers_on_queue(self) -> int:
        """The number of workers that consume."""
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
        """Publish requests without waiting for their confirms."""
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
                "type": self._type,
            }
        )
        return Publication(self._requests.name, properties, self._body(number))


_JSON = short_string("application/json")


def _number(reply: Delivery) -> int:
    return int(reply.message.correlation_id or 0)


@asynccontextmanager
async def open_load(
    amqp_url: str, topology: Topology, body: Callable[[int], bytes], type_: str = CREATE.type
) -> AsyncIterator[Load]:
    """A load on a request queue of its own, which is removed afterwards with all that belongs to
    it.

    Args:
        body: returns the body of a request by its number.
        type_: the messages' type.
    """
    name = "flow-run-worker bench"
    async with connected(amqp_url, name=name, connection_class=Connection) as connection:
        publishers: dict[bool, Publisher] = {
            confirms: Publisher(connection, await connection.channel(publisher_confirms=confirms), bulk=True)
            for confirms in (False, True)
        }

        async def try_out() -> AbstractChannel:
            await publishers[True].try_out()
            # During an alarm the broker may accept that message, but then answers no more.
            return await connection.channel(publisher_confirms=False)

        channel = await unless_blocked(connection.frames, try_out())
        try:
            await topology.declare(channel)
            requests = await channel.get_queue(topology.queue)
            replies: Mailbox[Delivery] = Mailbox()
            reply_to = await _consume_replies(connection, channel, replies)
            yield Load(publishers, replies, reply_to, requests, body, type_)
        finally:
            # The workers' settings may have asked for more than was declared above.
            everything = QueueNames(topology.queue, events=True, states=True)
            # A new channel: those above may be closed.
            tidying = await connection.channel()
            for queue in everything.queues:
                await tidying.queue_delete(queue)
            for exchange in everything.exchanges:
                await tidying.exchange_delete(exchange)


async def _consume_replies(
    connection: Connection, channel: AbstractChannel, replies: Mailbox[Delivery]
) -> str:
    """Consume a reply queue in bulk, as the worker does. Returns the queue's name."""
    queue = await channel.declare_queue(exclusive=True)

    def came(tag: int, properties: bytes, body: bytes, redelivered: bool, _: bytes) -> None:
        replies.put(Delivery(tag, read_message(properties, body, redelivered=redelivered)))

    channel.close_callbacks.add(lambda *_: replies.close())
    await queue.consume(read(connection, channel, came), no_ack=True)
    return queue.name
