"""Remembers the published states: a state that is read again is not published again. Pure.

Memory is bounded: the oldest are dropped first, and published again if they are read again.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from uuid import UUID

from worker.contract.immutable import immutable
from worker.store.states import Written

_ID = 16
_LOW = 2**64 - 1
# Most seconds that are kept: each takes 350 bytes beside its ids.
_SECONDS = 20_000
# A second's ids are joined once it is this old: a joined id takes 16 bytes, one in a set 90.
_JOIN_SECONDS = 15


@immutable
class Digest:
    """Describes the published states of one second.

    Attributes:
        count: their number.
        ids: the last 64 bits of their ids, joined by exclusive or.
    """

    count: int = 0
    ids: int = 0

    def with_id(self, id_: bytes) -> "Digest":
        """The digest of one state more."""
        return Digest(self.count + 1, self.ids ^ (int.from_bytes(id_) & _LOW))


class Told:
    """The published states, by the second of their time.

    Args:
        most: the most ids to keep.

    Attributes:
        count: ids that are kept now.
        last: the ids of the states published last.
    """

    def __init__(self, most: int, last: int) -> None:
        self.count = 0
        self.last: deque[UUID] = deque(maxlen=last)
        self._most = most
        self._seconds: dict[int, set[bytes] | bytes] = {}
        self._digests: dict[int, Digest] = {}
        # The second that was taken apart last: states are read in the order of their time.
        self._apart: tuple[int, set[bytes]] = (0, set())

    def __contains__(self, state: Written) -> bool:
        second = second_of(state.updated)
        return second in self._seconds and state.id.bytes in self._ids(second)

    def add(self, states: Iterable[Written]) -> None:
        """Remember states that are not remembered yet."""
        for state in states:
            second = second_of(state.updated)
            ids = self._ids(second)
            self._seconds[second] = ids
            ids.add(state.id.bytes)
            self._digests[second] = self._digests.get(second, Digest()).with_id(state.id.bytes)
            self.last.append(state.id)
            self.count += 1

    def tidy(self, since: datetime) -> None:
        """Drop those before this time, and the oldest of those that are too many."""
        oldest = second_of(since)
        for second in sorted(self._seconds):
            if second >= oldest and self.count <= self._most and len(self._seconds) <= _SECONDS:
                break
            self.count -= self._digests.pop(second).count
            del self._seconds[second]
        newest = max(self._seconds, default=0)
        for second, ids in self._seconds.items():
            if isinstance(ids, set) and second < newest - _JOIN_SECONDS:
                self._seconds[second] = b"".join(ids)
        self._apart = (0, set())

    def digests(self, most: int) -> dict[int, Digest]:
        """The digests of the newest seconds, ``most`` of them."""
        return {second: self._digests[second] for second in sorted(self._digests)[-most:]}

    def _ids(self, second: int) -> set[bytes]:
        ids = self._seconds.get(second, set())
        if isinstance(ids, set):
            return ids
        if self._apart[0] != second:
            self._apart = second, {ids[at : at + _ID] for at in range(0, len(ids), _ID)}
        return self._apart[1]


def second_of(time: datetime) -> int:
    """The second of a time, since 1970."""
    return int(time.timestamp() // 1)


def told_before(
    states: Iterable[Written], digests: Mapping[int, Digest], ids: Collection[UUID]
) -> Iterable[Written]:
    """The states that an earlier teller published. They have one of these ids, or are of a second
    whose states still have its digest.

    Args:
        states: all of each second, in their order.
    """
    seconds: dict[int, list[Written]] = {}
    for state in states:
        seconds.setdefault(second_of(state.updated), []).append(state)
    for second, those in seconds.items():
        found = Digest()
        for state in those:
            found = found.with_id(state.id.bytes)
        complete = found == digests.get(second)
        yield from (state for state in those if complete or state.id in ids)
