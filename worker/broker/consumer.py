"""Consumes from the request queue, with a prefetch that fits the sizes of its messages. Knows
nothing of requests.
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

# Seconds for the broker's answer. A quorum queue without a leader, as after the broker was killed,
# does not answer (RabbitMQ 3.10 raises an INTERNAL_ERROR after 65 seconds). A new session is served
# as soon as there is a leader.
QUEUE_TIMEOUT = 10.0
# If a consumer with room gets nothing for this many seconds, its queue is empty. On a busy machine
# a delivery of a megabyte took more than 0.05. This wait only holds back acknowledgements.
IDLE_SECONDS = 0.5
# The same while the worker stops, and the limit for the whole wait. Both in seconds.
STOP_IDLE_SECONDS = 0.05
STOP_SECONDS = 0.5
# A request with this delivery count may crash the worker's process. It is served alone (see
# Consumer.consume), so that the others don't use up their delivery limit with it.
SUSPECT_DELIVERY_COUNT = 3


class Consumer:
    """A consumer on one channel. Each change of its prefetch replaces the consumer at the broker.

    Args:
        connection: the channel's.
        channel: used by this consumer only.
        queue: of that channel.
        underlay: aiormq's object for the same channel.
        lost: done once the session has ended.
        prefetch_size: bytes of deliveries to hold. The last delivery may exceed it.
        bulk: read past aio-pika; see :mod:`worker.amqp`.
        careful: the last session ended over a delivery; see :meth:`consume`.

    Attributes:
        deliveries: in the order of their arrival. Closed when the session is lost or consuming has
            stopped.
        in_flight: the bytes of unacknowledged deliveries.
        acknowledger: for the deliveries.
        answered: a delivery was answered, so no permission was missing.
        prefetch: the present prefetch count; 0 without a consumer.
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
        # The tag of the latest delivery, and the first tag of the current consumer.
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
        """Consume, with at most ``prefetch`` unacknowledged deliveries. May be called again with
        more. Returns once the prefetch is set, or consuming has stopped.

        A consumer begins with one delivery at a time. It keeps to that while requests come with a
        high delivery count: one of them may have crashed a worker, which the broker counts against
        all requests in flight. A careful consumer keeps to it while any request is redelivered.

        Raises:
            ChannelLost: the session ended, or the broker refuses the consumer.
        """
        if self._tag is None:
            await self._change(1)
        if prefetch > 1:
            await self._calm.wait()
            self._full_prefetch = prefetch
            await self._change(self.in_flight.fitting(prefetch))

    @property
    def calm(self) -> bool:
        """True once it may consume more than one delivery at a time."""
        return self._calm.is_set()

    async def renew(self) -> None:
        """Consume with the same prefetch anew: deliveries that are unacknowledged now no longer
        count. Waits while reading is paused, since the broker's answer could not be read.

        Raises:
            ChannelLost: the session ended.
        """
        await self._reading.wait()
        await self._change(self.prefetch)

    def drop(self) -> None:
        """Drop all further deliveries: they go back to the queue when the channel closes. Resumes
        reading, for the broker's answers.
        """
        self._dropping = True
        self._resume_reading()

    async def stop(self) -> None:
        """Cancel the consumer, and close :attr:`deliveries`. Earlier deliveries stay there.

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
        """Replace the consumer: a running one can't change its prefetch. 0 means no consumer.

        A second consumer on the channel would add to the prefetch, so growing could do without a
        cancel. Shrinking, renewing and stopping could not, and a worker would count as several
        consumers of its queue.

        Make one change at a time, and cancel none half way: aiormq would close the channel.
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
        """Wait until the prefetch is full, or no more deliveries come.

        When a consumer is cancelled, a quorum queue takes back the deliveries on their way to it,
        and counts them as delivered: up to the whole prefetch, seen on RabbitMQ 3.10 and 4.0.
        """
        last = -1
        ended = time.monotonic() + STOP_SECONDS
        while self._last_tag != last and not (self._lost.done() or self._dropping):
            if self._stopped and time.monotonic() > ended:
                return  # a steady stream of requests would go on until the prefetch is full
            last = self._last_tag
            has = last - self._first_tag + 1 - self.acknowledger.written_since(self._first_tag)
            if has >= self.prefetch:
                return
            await asyncio.sleep(STOP_IDLE_SECONDS if self._stopped else IDLE_SECONDS)

    def acknowledge(self, deliveries: Sequence[Delivery], *, rejected: bool = False) -> None:
        """Schedule settled deliveries to be acknowledged, each only once. Rejected ones are moved
        to the dead letters by the broker.
        """
        self.answered = True
        tags = [delivery.tag for delivery in deliveries]
        self.acknowledger.acknowledge(tags, rejected=rejected)
        self.in_flight.remove(tags)
        self._follow_sizes()

    def _follow_sizes(self) -> None:
        """Change the prefetch to the number of deliveries that fit, if it differs much."""
        following = self._following_sizes is not None and not self._following_sizes.done()
        if following or not self._full_prefetch or self.in_flight.paused:
            return
        fitting = self.in_flight.fitting(self._full_prefetch)
        if (
            not self.prefetch / 2 < fitting < self.prefetch * 2
            or fitting == self._full_prefetch != self.prefetch
        ):
            self._following_sizes = asyncio.create_task(self._change(fitting))
            # An exception here is the session's end, which ``lost`` reports.
            self._following_sizes.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _be_patient(self) -> None:
        """Data arrived, so restart the timeout. There is no timeout while reading is paused."""
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

    def _came(self, tag: int, properties: bytes, body: bytes, redelivered: bool, route: bytes) -> None:
        """Take a delivery. Called within a read of the socket."""
        delivery = Delivery(tag, read_message(properties, body, redelivered=redelivered), route)
        if delivery.delivery_count < self._suspect_count:
            self._calm.set()
        self._last_tag = delivery.tag
        if self._dropping:
            return
        self._be_patient()
        self.in_flight.add(delivery.tag, delivery.size)
        self.deliveries.put(delivery)
