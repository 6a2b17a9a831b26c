"""The rule for a publication that the broker does not take: whether it is tried again, waited for,
or given up. Publishes nothing.
"""

from worker.amqp.publication import Confirm
from worker.line.patience import Patience

# At most this share of the prefetch waits for one reply queue. Further replies are tried once.
SHARE_OF_PREFETCH = 0.1
# With a smaller prefetch, take the share of this one, if memory allows: waiting replies don't keep
# other requests from being delivered.
LEAST_PREFETCH = 100


class Retry:
    """Decides on one reply at a time, and remembers the queues that were given up. A dead letter is
    never given up: don't ask.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._given_up_until: dict[str, float] = {}

    def reason_to_give_up(
        self,
        queue: str,
        confirm: Confirm | None,
        *,
        now: float,
        since: float,
        later: bool,
        others: int,
        prefetch: int,
    ) -> str | None:
        """The reason for giving up a reply; None to wait for its confirm, or to publish it again.

        Args:
            queue: of the reply.
            confirm: the broker's answer; None if there is none.
            now: the time, in seconds of any clock.
            since: the time of its first publication, by the same clock.
            later: the broker has answered for a later publication.
            others: the number of other answers that wait for this queue.
            prefetch: the session's full prefetch. The present one may be lower: a session begins
                with 1 and ends with 0.
        """
        waited = now - since
        if confirm is Confirm.RETURN:
            return "no such queue"
        if confirm is Confirm.NACK:
            if waited > self._patience.reply:
                self._give_up(queue, now)
            elif self._given_up_until.get(queue, now) <= now and others < SHARE_OF_PREFETCH * prefetch:
                return None
            return "the broker does not take it"
        if waited > (self._patience.reply if later else self._patience.lone_reply):
            return "the broker does not confirm it"
        return None

    def _give_up(self, queue: str, now: float) -> None:
        self._given_up_until = {each: until for each, until in self._given_up_until.items() if until > now}
        self._given_up_until[queue] = now + self._patience.given_up
