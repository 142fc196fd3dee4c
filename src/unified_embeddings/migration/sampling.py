"""A sample of a stream in which each item has the same chance to be."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np

Item = TypeVar("Item")


class Sample(Generic[Item]):
    """A sample of bounded size, the same for the same stream.

    Args:
        size: The most items.

    Attributes:
        items: The sample.

    Example:
        >>> from unified_embeddings.migration.sampling import Sample
        >>> sample = Sample(2)
        >>> for number in range(100):
        ...     sample.offer(number)
        >>> len(sample.items)
        2
    """

    def __init__(self, size: int) -> None:
        self.items: list[Item] = []
        self._size = size
        self._seen = 0
        self._chance = np.random.default_rng(0)

    def offer(self, item: Item) -> None:
        """Take an item, maybe in the place of an earlier one."""
        self._seen += 1
        if len(self.items) < self._size:
            self.items.append(item)
            return
        place = int(self._chance.integers(self._seen))
        if place < self._size:
            self.items[place] = item
