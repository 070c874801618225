"""A cache bounded by bytes: what was used least recently goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteCache(Generic[V]):
    """At most `capacity` bytes of values, by key; safe to use from several threads."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return self._size

    def get(self, key: Hashable) -> V | None:
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Hashable, value: V, size: int) -> None:
        """Keeps a value of `size` bytes, unless it alone is larger than the cache."""
        with self._lock:
            self._size -= self._entries.pop(key, (None, 0))[1]
            if size > self.capacity:
                return
            self._entries[key] = value, size
            self._size += size
            while self._size > self.capacity:
                self._size -= self._entries.popitem(last=False)[1][1]
