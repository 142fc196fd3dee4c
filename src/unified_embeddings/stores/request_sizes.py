"""Points in requests of a size that a server accepts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from qdrant_client import models as qm

T = TypeVar("T")

_REQUEST_NUMBERS = 700_000
"""Numbers in a request: as JSON they take 20 bytes each, and a server accepts 32 MB."""


def split_by_size(items: Iterable[tuple[T, Mapping[str, Any]]]) -> Iterator[list[T]]:
    """Yield items in lists of which each fits into a request; a larger item goes alone.

    Args:
        items: Each with its vectors by name.
    """
    request: list[T] = []
    numbers = 0
    for item, vectors in items:
        own_numbers = sum(map(_count_numbers, vectors.values()))
        if request and numbers + own_numbers > _REQUEST_NUMBERS:
            yield request
            request, numbers = [], 0
        request.append(item)
        numbers += own_numbers
    if request:
        yield request


def _count_numbers(vector: qm.SparseVector | Sequence[Any]) -> int:
    if isinstance(vector, qm.SparseVector):
        return 2 * len(vector.indices)
    if vector and isinstance(vector[0], Sequence):
        return len(vector) * len(vector[0])
    return len(vector)
