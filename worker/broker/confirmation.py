"""Bookkeeping of publisher confirms for publications that went out together; knows no sockets and
no frames.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Confirmation:
    """What the broker says of publications with consecutive delivery tags.

    Attributes: first: the delivery tag of the first publication. last: the delivery tag of the last
        publication. outstanding: tags that the broker has said nothing of yet. returned: tags of
        publications that no queue took (``basic.return``); they are confirmed as well. refused:
        tags that the broker answered with a ``basic.nack``: not taken over by it. latest: the
        highest tag that the broker has answered while some of these were outstanding, later ones'
        included. anonymous: tags whose publication carries no message id of ours, so that a return
        of it names none of them.
    """

    first: int
    last: int
    outstanding: set[int]
    done: asyncio.Future[None]
    returned: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    latest: int = 0
    anonymous: frozenset[int] = frozenset()

    @property
    def flawless(self) -> bool:
        """Whether all publications have been confirmed, and none of them was returned or refused."""
        return not (self.outstanding or self.returned or self.refused)

    async def wait(self, seconds: float) -> None:
        """Wait until the broker has answered for every publication, or for so many seconds.

        Raises: ChannelLost: the channel went away first; what was outstanding may or may not have
            been taken.
        """
        await asyncio.wait((self.done,), timeout=seconds)
        if self.done.done():
            self.done.result()


class Confirmations:
    """All publications of one channel that wait for the broker, oldest first."""

    def __init__(self) -> None:
        self._next_tag = 1
        self._pending: deque[Confirmation] = deque()

    @property
    def next_tag(self) -> int:
        """The delivery tag of the next publication."""
        return self._next_tag

    def expect(self, count: int, anonymous: frozenset[int] = frozenset()) -> Confirmation:
        """Give the next ``count`` delivery tags out. Call it in the order in which the publications
        are written.
        """
        first, last = self._next_tag, self._next_tag + count - 1
        self._next_tag += count
        done = asyncio.get_running_loop().create_future()
        confirmation = Confirmation(first, last, set(range(first, last + 1)), done, anonymous=anonymous)
        if count:
            self._pending.append(confirmation)
        else:
            confirmation.done.set_result(None)
        return confirmation

    def answer(self, tag: int, *, multiple: bool, refused: bool) -> None:
        """Take a ``basic.ack`` or, with ``refused``, a ``basic.nack``; with ``multiple`` for all
        tags up to ``tag``.
        """
        for confirmation in self._pending:
            if confirmation.first > tag:
                break
            if multiple:
                if tag >= confirmation.last:
                    answered = set(confirmation.outstanding)
                else:
                    answered = {each for each in confirmation.outstanding if each <= tag}
            else:
                answered = {tag} & confirmation.outstanding
            confirmation.outstanding -= answered
            confirmation.latest = max(confirmation.latest, tag)
            if refused:
                confirmation.refused |= answered
            if not confirmation.outstanding and not confirmation.done.done():
                confirmation.done.set_result(None)
        while self._pending and not self._pending[0].outstanding:
            self._pending.popleft()

    def returned(self, tag: int) -> None:
        """Take a ``basic.return``; the broker sends it before the confirm of the same publication."""
        for confirmation in self._pending:
            if confirmation.first <= tag <= confirmation.last:
                confirmation.returned.add(tag)
                return

    def returned_anonymously(self) -> None:
        """Take a ``basic.return`` of a publication without a message id of ours: it may be any of
        those in flight.
        """
        for confirmation in self._pending:
            confirmation.returned |= confirmation.anonymous & confirmation.outstanding

    def fail(self, error: Exception) -> None:
        """End every wait: the channel is gone."""
        while self._pending:
            confirmation = self._pending.popleft()
            if not confirmation.done.done():
                confirmation.done.set_exception(error)
                # Nobody may be waiting any more; then it is not an error that nobody looked.
                confirmation.done.exception()
