"""Pooled ColBERT rows: clustered by hand and by property, and the pass that they come from."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from unified_embeddings import heads
from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.embedders.paired import PairedEmbedder
from unified_embeddings.embedders.pooling import pool_rows
from unified_embeddings.errors import InputError
from unified_embeddings.types import FloatArray

TEXTS = [
    "Foxes jump over dogs and cats at night.",
    "The sea is calm.",
    "",
    "one two three four five six seven eight nine ten eleven twelve",
]


def unit_rows(count: int, width: int, seed: int = 0) -> FloatArray:
    numbers = np.random.default_rng(seed).standard_normal((count, width))
    return heads.normalise(numbers.astype(np.float32))


def at(*degrees: float) -> FloatArray:
    """Return unit rows in the plane at these angles."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_by_hand() -> None:
    # 0° and 10° are nearest, then 90° and 110°; each pair becomes the direction between them.
    np.testing.assert_allclose(pool_rows(at(0, 90, 10, 110), 2), at(5, 100), atol=1e-6)
    # Of five rows three are left: 200° has no neighbour.
    np.testing.assert_allclose(pool_rows(at(200, 0, 90, 10, 110), 2), at(200, 5, 100), atol=1e-6)


def test_a_clusters_size_counts() -> None:
    # The mean of 0°, 0° and 30° is not the mean of 0° and 30°: its angle has the tangent
    # sin 30° / (2 + cos 30°).
    (row,) = pool_rows(at(0, 0, 30), 3)
    assert np.degrees(np.arctan2(row[1], row[0])) == pytest.approx(9.8961, abs=1e-3)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 33])
def test_properties(factor: int, count: int) -> None:
    rows = unit_rows(count, 24)
    pooled = pool_rows(rows, factor)
    assert pooled.shape == (-(-count // factor), 24)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(pooled, pool_rows(rows.copy(), factor))
    if factor == 1:
        np.testing.assert_array_equal(pooled, rows)


def test_equal_rows_leave_as_many_as_others() -> None:
    assert len(pool_rows(np.repeat(at(40), 9, axis=0), 2)) == 5


def test_the_clusters_are_scipys() -> None:
    rows = unit_rows(40, 16, seed=3)
    labels = fcluster(linkage(rows.astype(np.float64), "ward"), 20, "maxclust")
    firsts = sorted(set(labels), key=labels.tolist().index)
    means = heads.normalise(np.stack([rows[labels == label].mean(axis=0) for label in firsts]))
    np.testing.assert_allclose(pool_rows(rows, 2), means, atol=1e-6)


def test_no_more_rows_than_qdrant_holds() -> None:
    assert pool_rows(unit_rows(40, 2**15), 1).shape == (32, 2**15)


# --- the pass they come from ------------------------------------------------------------------


def test_pooled_rows_are_those_of_the_texts_own() -> None:
    embedder = FakeEmbedder()
    own = FakeEmbedder().encode_documents(TEXTS, colbert=True).colbert or []
    for factor in (1, 2, 3):
        for rows, pooled in zip(own, embedder.encode_pooled(TEXTS, factor), strict=True):
            np.testing.assert_array_equal(pooled, pool_rows(rows, factor))
    with pytest.raises(InputError, match="factor must be a whole number >= 1, got 0"):
        embedder.encode_pooled(TEXTS, 0)


@pytest.mark.parametrize("kind", ["one model", "a pair"])
def test_they_come_from_the_pass_that_gives_dense_vectors(kind: str) -> None:
    dense = FakeEmbedder()
    embedder: FakeEmbedder | PairedEmbedder = dense
    if kind == "a pair":
        embedder = PairedEmbedder(dense, FakeEmbedder(model_name="other"))
    wish = embedder.want_pooled(2)
    assert wish is not None
    embedder.encode_documents(TEXTS, dense=True)
    passes = dense.stats().forwards
    embedder.encode_pooled(TEXTS, 2)
    assert dense.stats().forwards == passes == 1
    # Queries, and documents of which other vectors are asked for, have none.
    held = dense.cache.stats().entries
    dense.encode_queries(["a question"], dense=True, sparse=False)
    dense.encode_documents(["another text"], dense=False, sparse=True)
    assert dense.cache.stats().entries == held + 2


def test_nobody_wants_them_any_more() -> None:
    embedder = FakeEmbedder()
    wish = embedder.want_pooled(2)
    embedder.encode_documents(["a text"], dense=True, sparse=False)
    assert embedder.cache.stats().entries == 2
    del wish
    gc.collect()
    embedder.encode_documents(["another text"], dense=True, sparse=False)
    assert embedder.cache.stats().entries == 3


def test_a_cache_that_holds_nothing_costs_a_second_pass_and_changes_nothing() -> None:
    embedder = FakeEmbedder(cache=EmbeddingCache(max_bytes=0))
    wish = embedder.want_pooled(2)
    embedder.encode_documents(TEXTS)
    pooled = embedder.encode_pooled(TEXTS, 2)
    assert wish is not None
    assert embedder.stats().forwards == 2
    for rows, expected in zip(pooled, FakeEmbedder().encode_pooled(TEXTS, 2), strict=True):
        np.testing.assert_array_equal(rows, expected)
