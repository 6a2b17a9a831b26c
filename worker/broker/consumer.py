"""Consumes from the request queue: what comes in, how much of it at a time, and its
acknowledgement; knows nothing of requests.
"""

import asyncio
import time
from collections.abc import Sequence

import aiormq.abc
from aio_pika.abc import AbstractChannel, AbstractQueue

from worker.amqp import plain
from worker.amqp.reading import read
from worker.amqp.transport import Connection
from worker.broker.acknowledger import Acknowledger
from worker.broker.connection import ChannelLost, lost_with
from worker.broker.in_flight import InFlight
from worker.broker.incoming import read_message
from worker.contract.delivery import Delivery
from worker.tasks.mailbox import Mailbox

# A quorum queue that has no leader yet, as after the broker was killed, keeps whoever declares or
# consumes it waiting (for 65 seconds and an INTERNAL_ERROR in RabbitMQ 3.10); a new session is
# served as soon as it has one. Seconds.
QUEUE_TIMEOUT = 10.0
# A consumer that has room, and to which nothing came for so long, has an empty queue; seconds. On a
# busy machine a delivery of a megabyte was longer on its way than 0.05. Nobody waits for this: only
# acknowledgements are held back.
IDLE_SECONDS = 0.5
# A worker that stops waits less for a delivery, and no longer for all of them.
STOP_IDLE_SECONDS = 0.05
STOP_SECONDS = 0.5
# A request that came back so often may be what ends the worker's process. It is served alone (see
# Consumer.consume), so that the others don't use up their delivery limit with it.
SUSPECT_DELIVERY_COUNT = 3


class Consumer:
    """A consumer, with one prefetch after the other, on one channel.

    Args:
        connection: the channel's.
        channel: for this alone.
        queue: of that channel.
        underlay: the same channel, as aiormq has it.
        lost: done once the session has ended.
        prefetch_size: bytes of deliveries that are held at the most; one more is let in.
        bulk: read past aio-pika; see :mod:`worker.amqp`.
        careful: whether the last session ended over what was delivered; see :meth:`consume`.

    Attributes:
        deliveries: what came in. Closed when the session is lost or consuming has stopped.
        in_flight: what was delivered and is not acknowledged, in bytes.
        acknowledger: for the deliveries.
        answered: whether a delivery was answered, so that no right was missing then.
        prefetch: how many deliveries the broker lets be unacknowledged by now; 0 when no more are
            taken.
    """

    def __init__(
        self,
        connection: Connection,
        channel: AbstractChannel,
        queue: AbstractQueue,
        underlay: aiormq.abc.AbstractChannel,
        lost: "asyncio.Future[ChannelLost]",
        prefetch_size: int,
        *,
        bulk: bool = True,
        careful: bool = False,
    ) -> None:
        self.deliveries: Mailbox[Delivery] = Mailbox(lambda delivery: delivery.size)
        self.in_flight = InFlight(prefetch_size, self._pause_reading, self._resume_reading)
        self.acknowledger = Acknowledger(underlay, lambda: self.prefetch)
        self.answered = False
        self.prefetch = 0
        self._frames = connection.frames
        self._channel = channel
        self._consume = (read if bulk else plain.read)(connection, channel, self._came)
        self._queue = queue
        self._lost = lost
        self._tag: str | None = None
        self._changing = asyncio.Lock()
        # The latest delivery's tag, and the first that the consumer of now could have.
        self._last_tag = 0
        self._first_tag = 1
        self._full_prefetch = 0
        self._following_sizes: asyncio.Task[None] | None = None
        self._patience: asyncio.Timeout | None = None
        self._calm = asyncio.Event()
        self._suspect_count = 1 if careful else SUSPECT_DELIVERY_COUNT
        self._stopped = False
        self._dropping = False
        self._reading = asyncio.Event()
        self._reading.set()
        lost.add_done_callback(lambda _: self.deliveries.close())

    async def consume(self, prefetch: int) -> None:
        """Consume, with at most ``prefetch`` deliveries unacknowledged; returns once that many are
        let in, or none any more. May be called again with more.

        Begins with one at a time, and goes on so while requests come that were delivered too often
        before: one of them may be what ended the worker that had it, and the broker counts that
        against all that were in flight. A careful consumer goes on so while any come that were
        delivered before.

        Raises:
            ChannelLost: the session ended, or the broker does not let us consume.
        """
        if self._tag is None:
            await self._change(1)
        if prefetch > 1:
            await self._calm.wait()
            self._full_prefetch = prefetch
            await self._change(self.in_flight.fitting(prefetch))

    @property
    def calm(self) -> bool:
        """Whether it no longer consumes one at a time."""
        return self._calm.is_set()

    async def renew(self) -> None:
        """Consume with as much prefetch again: what is unacknowledged by now counts for it no more.
        Begins once the connection is read, as the broker's answer is not before.

        Raises:
            ChannelLost: the session ended.
        """
        await self._reading.wait()
        await self._change(self.prefetch)

    def drop(self) -> None:
        """Take nothing more: what still comes is the broker's again once the channel is closed. The
        connection is read again, for the broker's answers.
        """
        self._dropping = True
        self._resume_reading()

    async def stop(self) -> None:
        """Cancel the consumer. What was delivered until then stays in :attr:`deliveries`, which is
        closed behind it.

        Raises:
            ChannelLost: the session ended.
        """
        self._stopped = True
        self._calm.set()
        if self.in_flight.paused:
            self.drop()
        await self._change(0)
        self.deliveries.close()

    async def _change(self, prefetch: int) -> None:
        """Put a consumer with this prefetch (none: 0) in the place of the one before; it is set for
        good when one begins.

        One change at a time, and none is cancelled half way: aiormq closes the channel then.
        """
        async with self._changing:
            if self._lost.done():
                raise self._lost.result()
            tag, self._tag = self._tag, None
            try:
                seconds = QUEUE_TIMEOUT if self._reading.is_set() else None
                async with asyncio.timeout(seconds) as self._patience, self.acknowledger.writing:
                    with lost_with(self._channel):
                        if tag is not None:
                            await self._nothing_on_its_way()
                            await self._queue.cancel(tag)
                        self.prefetch = 0 if self._stopped else prefetch
                        if self.prefetch:
                            await self._channel.set_qos(prefetch_count=self.prefetch)
                            self._first_tag = self._last_tag + 1
                            self._tag = await self._queue.consume(self._consume)
            except TimeoutError as error:
                raise ChannelLost(f"the broker does not answer for the queue '{self._queue.name}'") from error
            finally:
                self._patience = None

    async def _nothing_on_its_way(self) -> None:
        """Wait until the consumer has as much as it may have, or nothing comes any more.

        A quorum queue takes back what is on its way to a consumer that is cancelled, and counts it
        as delivered.
        """
        last = -1
        ended = time.monotonic() + STOP_SECONDS
        while self._last_tag != last and not (self._lost.done() or self._dropping):
            if self._stopped and time.monotonic() > ended:
                return  # with requests coming steadily, it would be until the prefetch is full
            last = self._last_tag
            has = last - self._first_tag + 1 - self.acknowledger.written_since(self._first_tag)
            if has >= self.prefetch:
                return
            await asyncio.sleep(STOP_IDLE_SECONDS if self._stopped else IDLE_SECONDS)

    def acknowledge(self, deliveries: Sequence[Delivery], *, rejected: bool = False) -> None:
        """Have deliveries acknowledged that are settled, each only once; or rejected, so that the
        broker moves them to the dead letters itself.
        """
        self.answered = True
        tags = [delivery.tag for delivery in deliveries]
        self.acknowledger.acknowledge(tags, rejected=rejected)
        self.in_flight.remove(tags)
        self._follow_sizes()

    def _follow_sizes(self) -> None:
        """Let in as many deliveries as fit, when that has changed by more than a little."""
        following = self._following_sizes is not None and not self._following_sizes.done()
        if following or not self._full_prefetch or self.in_flight.paused:
            return
        fitting = self.in_flight.fitting(self._full_prefetch)
        if (
            not self.prefetch / 2 < fitting < self.prefetch * 2
            or fitting == self._full_prefetch != self.prefetch
        ):
            self._following_sizes = asyncio.create_task(self._change(fitting))
            # The session's end is told by itself.
            self._following_sizes.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _be_patient(self) -> None:
        """The broker lives, and its answer may stand behind what comes: wait as long again. And
        without end while nothing is read.
        """
        if self._patience is not None and not self._patience.expired():
            until = asyncio.get_running_loop().time() + QUEUE_TIMEOUT
            self._patience.reschedule(until if self._reading.is_set() else None)

    def _pause_reading(self) -> None:
        if self._stopped or self._dropping:
            self._dropping = True
            return
        self._frames.pause_reading()
        self._reading.clear()
        self._be_patient()

    def _resume_reading(self) -> None:
        self._frames.resume_reading()
        self._reading.set()
        self._be_patient()

    def _came(self, tag: int, properties: bytes, body: bytes, redelivered: bool) -> None:
        """Take what came in. Called within a read of the socket."""
        delivery = Delivery(tag, read_message(properties, body, redelivered=redelivered))
        if delivery.delivery_count < self._suspect_count:
            self._calm.set()
        self._last_tag = delivery.tag
        if self._dropping:
            return
        self._be_patient()
        self.in_flight.add(delivery.tag, delivery.size)
        self.deliveries.put(delivery)
