"""Decides when to give up a reply that the broker does not confirm. A dead letter is never given
up. Publishes nothing.
"""

from time import monotonic

from worker.amqp.publication import Confirm

# Retry a refused reply for this many seconds, then give it up. A replicated reply queue whose node
# died has another leader by then, also on a busy machine (tests/faults/test_cluster.py needed more
# than 10). Wait as long for a missing confirm if the broker confirms later publications: then the
# broker is not slow, but this queue has no majority.
REPLY_SECONDS = 25.0
# Wait this many seconds if no later publication is confirmed. The broker closes the channel over a
# delivery that is held for 30 minutes.
LONE_REPLY_SECONDS = 600.0
# After giving up a reply, try further ones to its queue only once, for this many seconds.
GIVEN_UP_SECONDS = 60.0
# At most this share of the prefetch waits for one reply queue. Further replies are tried once.
SHARE_OF_PREFETCH = 0.1
# With a smaller prefetch, take the share of this one, if memory allows: waiting replies don't keep
# other requests from being delivered.
LEAST_PREFETCH = 100


class GivingUp:
    """Decides on one reply at a time, and remembers the queues that were given up."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def reason(
        self, queue: str, confirm: Confirm | None, *, waited: float, later: bool, others: int, prefetch: int
    ) -> str | None:
        """The reason for giving up a reply; None to wait for its confirm, or to publish it again.

        Args:
            queue: of the reply.
            confirm: the broker's answer; None if there is none.
            waited: seconds since its first publication.
            later: the broker has answered for a later publication.
            others: the number of other answers that wait for this queue.
            prefetch: the session's full prefetch. The present one may be lower: a session begins
                with 1 and ends with 0.
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
        if waited > LONE_REPLY_SECONDS or (waited > REPLY_SECONDS and later):
            return "the broker does not confirm it"
        return None
