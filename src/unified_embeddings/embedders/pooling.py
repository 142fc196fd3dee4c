"""Fewer ColBERT rows for a text: rows that say nearly the same become one.

What lives here: the clustering, and which embedders have been asked for pooled rows. What does not:
the rows (`heads`), and how Qdrant stores them (`stores.stored_colbert`).

The method is hierarchical token pooling: Clavié, Chaffin and Adams 2024, "Reducing the Footprint of
Multi-Vector Retrieval with Minimal Performance Impact via Token Pooling", section 3. Questions are
never pooled. Unlike there, no row is set apart: the closing token's row is pooled as the others
are, which loses less on XQuAD-R (docs/late-interaction.md).
"""

from __future__ import annotations

import threading
import weakref
from typing import cast

import numpy as np

from unified_embeddings.heads import normalise
from unified_embeddings.types import FloatArray

MOST_NUMBERS = 2**20
"""Of one multi-vector in Qdrant: 1,024 rows of 1,024 numbers. Longer texts are pooled to that."""


def pool_rows(rows: FloatArray, factor: int) -> FloatArray:
    """Return a text's ColBERT rows, pooled: about one for each `factor` of them.

    The rows are merged pair by pair, always the pair whose clusters are nearest by Ward's
    criterion, until ⌈t / factor⌉ clusters are left. On unit rows the squared distance is 2 - 2 ·
    cosine, so rows of a high cosine are merged first. A cluster becomes the mean of its rows, of
    unit length again. The clusters stand in the order of their first rows.

    Args:
        rows: Unit rows, float32 (t, d), t >= 1.
        factor: At least 1; 1 changes nothing, except that no more rows are left than Qdrant holds
            in one multi-vector.

    Returns:
        Unit rows, float32 (k, d) with k = min(⌈t / factor⌉, 2**20 // d). The same for the same
        rows.
    """
    count = min(-(-len(rows) // factor), max(MOST_NUMBERS // rows.shape[1], 1))
    if count >= len(rows):
        return rows
    labels = _cluster(rows, count)
    sums = np.zeros((count, rows.shape[1]), dtype=np.float64)
    np.add.at(sums, labels, rows)
    # The mean and the sum have one direction, so the sizes of the clusters need not be known.
    return normalise(cast("FloatArray", sums))


def _cluster(rows: FloatArray, count: int) -> list[int]:
    """Return the cluster of each row, numbered in the order of their first rows."""
    from scipy.cluster.hierarchy import ward  # Here, since it takes 0.2 s and few need it.

    merges = ward(rows.astype(np.float64))
    clusters = {place: [place] for place in range(len(rows))}
    # `fcluster` would leave fewer clusters where distances tie. So the tree is cut here.
    for step in range(len(rows) - count):
        first, second = int(merges[step, 0]), int(merges[step, 1])
        clusters[len(rows) + step] = clusters.pop(first) + clusters.pop(second)
    labels = [0] * len(rows)
    for number, members in enumerate(sorted(clusters.values(), key=min)):
        for place in members:
            labels[place] = number
    return labels


class PooledRows:
    """What somebody holds who wants pooled rows of all documents that an embedder embeds.

    Args:
        factor: The pool factor.
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor


class PooledWishes:
    """The pool factors that are wanted of an embedder's documents, as long as somebody wants them.

    Thread-safe: a tuple is replaced, never changed.
    """

    def __init__(self) -> None:
        self._adding = threading.Lock()
        self._wishes: tuple[weakref.ref[PooledRows], ...] = ()

    def add(self, factor: int) -> PooledRows:
        """Want rows pooled by a factor until the object returned is dropped."""
        wish = PooledRows(factor)
        with self._adding:
            alive = [each for each in self._wishes if each() is not None]
            self._wishes = (*alive, weakref.ref(wish))
        return wish

    def factors(self) -> tuple[int, ...]:
        """Return the factors wanted now, ascending."""
        wishes = [each() for each in self._wishes]
        return tuple(sorted({wish.factor for wish in wishes if wish is not None}))
