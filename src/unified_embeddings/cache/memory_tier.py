"""The cache's first tier: vectors in this process's memory.

What lives here: which values are kept, and their bound in bytes and entries. What does not: locks,
and who computes what is missing (`embedding_cache`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from unified_embeddings.cache.keys import Key, Value

_ENTRY_OVERHEAD = 256
"""Bytes that an entry costs beside its arrays: key, dict slot and array headers."""


class MemoryTier:
    """Least-recently-used values, bounded in bytes and in entries. Not thread-safe.

    An exception between any two instructions, as Ctrl-C raises it, leaves it usable: the values are
    in one dict whose operations are atomic, and their size is counted anew after a call that did
    not come to its end.

    Args:
        max_bytes: The most bytes that the values may take, overhead included.
        max_entries: The most values; None for any number.

    Attributes:
        max_bytes: See above.
        max_entries: See above.
        evictions: Number of values dropped to keep within the bounds.
    """

    def __init__(self, max_bytes: int, max_entries: int | None) -> None:
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.evictions = 0
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._bytes = 0
        self._is_counted = True

    def __len__(self) -> int:
        return len(self._values)

    @property
    def bytes(self) -> int:
        """Return the bytes that the values take, overhead included."""
        if not self._is_counted:
            self._bytes = sum(map(_size_of, self._values.values()))
            self._is_counted = True
        return self._bytes

    def get(self, key: Key) -> Value | None:
        """Return a value, and note that it was used; None if it is not here."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def get_all(self, keys: Sequence[Key]) -> list[Value] | None:
        """Return the values of keys, and note that they were used; None if one is not here."""
        values = []
        for key in keys:
            value = self._values.get(key)
            if value is None:
                return None
            values.append(value)
        for key in keys:
            self._values.move_to_end(key)
        return values

    def put(self, key: Key, value: Value) -> None:
        """Keep a value, dropping the least recently used ones to make room for it.

        A value over the bound by itself is not kept: it would evict all others for nothing.
        """
        size = _size_of(value)
        if size > self.max_bytes or self.max_entries == 0:
            return
        used = self.bytes
        self._is_counted = False
        former = self._values.pop(key, None)
        if former is not None:
            used -= _size_of(former)
        while self._values and not self._has_room(used + size):
            _, evicted = self._values.popitem(last=False)
            used -= _size_of(evicted)
            self.evictions += 1
        self._values[key] = value
        self._bytes = used + size
        self._is_counted = True

    def clear(self) -> None:
        """Forget all values. The number of evictions stays."""
        self._is_counted = False
        self._values.clear()

    def _has_room(self, total: int) -> bool:
        """Tell whether one more value fits, with which the values take `total` bytes."""
        if self.max_entries is not None and len(self._values) >= self.max_entries:
            return False
        return total <= self.max_bytes


def _size_of(value: Value) -> int:
    return value.nbytes + _ENTRY_OVERHEAD
