"""When to give up on a reply that the broker does not confirm; publishes nothing.

A dead letter is never given up.
"""

from time import monotonic

from worker.amqp.publication import Confirm

# For how long, in seconds, a reply is published again that the broker refuses, before the requester
# is given up as one whose queue is gone: a replicated reply queue whose node died has another
# leader by then, also on a machine that is busy (tests/faults/test_cluster.py needed more than 10).
# And as long is waited for a confirm while the broker confirms later ones: not the broker is slow,
# but this queue has no majority.
REPLY_SECONDS = 25.0
# And this long where nothing went out later: before the broker closes the channel over a delivery
# that is held (30 minutes).
LONE_REPLY_SECONDS = 600.0
# Once replies to a queue were given up, the next ones are tried once, for so many seconds.
GIVEN_UP_SECONDS = 60.0
# A reply queue that takes nothing holds so many replies at the most; what is beyond is tried once.
SHARE_OF_PREFETCH = 0.1
# With a small prefetch it is the share of this one, as far as their sizes allow. What is set aside
# takes nobody's place.
LEAST_PREFETCH = 100


class GivingUp:
    """Decides on one reply at a time, and remembers the queues that were given up."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def reason(
        self,
        queue: str,
        confirm: Confirm | None,
        *,
        waited: float,
        overtaken: bool,
        others: int,
        prefetch: int,
    ) -> str | None:
        """Why a reply is given up; None to wait for its confirm, or to publish it again.

        Args:
            queue: where it was published to.
            confirm: what the broker said of it; None for nothing.
            waited: since it was published first, in seconds.
            overtaken: whether the broker has answered for a later one.
            others: how many more answers wait for this queue.
            prefetch: how many deliveries are let in, once the session is on its way. Not how many
                are now: a session begins with one, and ends with none.
        """
        if confirm is Confirm.RETURN:
            return "no such queue"
        if confirm is Confirm.NACK:
            now = monotonic()
            if waited > REPLY_SECONDS:
                self._until = {each: until for each, until in self._until.items() if until > now}
                self._until[queue] = now + GIVEN_UP_SECONDS
            elif self._until.get(queue, 0.0) < now and others < SHARE_OF_PREFETCH * prefetch:
                return None
            return "the broker does not take it"
        if waited > LONE_REPLY_SECONDS or (waited > REPLY_SECONDS and overtaken):
            return "the broker does not confirm it"
        return None
