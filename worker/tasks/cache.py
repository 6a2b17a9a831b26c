"""A cache that is bounded by the sizes of its values."""

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Keeps the values used last, up to a total size. The newest is kept whatever its size."""

    def __init__(self, max_size: int) -> None:
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._max_size = max_size
        self._size = 0

    def get(self, key: K) -> V | None:
        """The value of this key, if it is kept."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value. It replaces the values used longest ago."""
        self._size += size - self._kept.pop(key, (None, 0))[1]
        self._kept[key] = value, size
        while self._size > self._max_size and len(self._kept) > 1:
            self._size -= self._kept.popitem(last=False)[1][1]
