"""Which ``basic.ack`` frames say that deliveries are settled, in as few frames as can be; knows no
sockets.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The acks to send.

    Attributes:
        up_to: acknowledge everything up to and with this tag (``multiple``), or None.
        single: tags to acknowledge each by itself, ascending.
    """

    up_to: int | None
    single: tuple[int, ...]


class Acknowledgements:
    """Keeps which delivery tags of one channel have been settled.

    Batches mostly settle in the order in which they came, and then one frame acknowledges all of
    them. One that hangs (its reply isn't confirmed) does not hold up the others: they are
    acknowledged singly.
    """

    def __init__(self) -> None:
        self._settled_up_to = 0
        self._settled_ahead: set[int] = set()

    def settle(self, tags: Iterable[int]) -> Acknowledgement:
        """Take tags that are settled now, each only once.

        The broker refuses a ``multiple`` whose own tag is not outstanding, so ``up_to`` is always
        one of ``tags``.
        """
        settled = set(tags)
        up_to = None
        reached = self._settled_up_to
        while True:
            following = reached + 1
            if following in settled:
                settled.remove(following)
                up_to = following
            elif following in self._settled_ahead:
                self._settled_ahead.remove(following)
            else:
                break
            reached = following
        self._settled_up_to = reached
        self._settled_ahead |= settled
        return Acknowledgement(up_to, tuple(sorted(settled)))
