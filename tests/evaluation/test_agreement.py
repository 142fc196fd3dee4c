"""How far two models' vectors agree, by hand and of a model with itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors_by_hand import floats, sparse

from unified_embeddings import Embeddings, SparseVector
from unified_embeddings.evaluation.agreement import (
    Drift,
    batch_drift,
    colbert_agreement,
    colbert_scores,
    dense_agreement,
    sparse_agreement,
)
from unified_embeddings.evaluation.rankings import overlap, rank_documents


class TestVectors:
    def test_cosine(self) -> None:
        agreement = dense_agreement(
            floats([1, 0], [1, 0], [0, 1]), floats([1, 0], [0.6, 0.8], [0, 1])
        )
        assert agreement.cosine_min == pytest.approx(0.6)
        assert agreement.cosine_mean == pytest.approx(2.6 / 3)
        # The 5th percentile of 0.6, 1, 1 lies a tenth of the way from the first to the second.
        assert agreement.cosine_p5 == pytest.approx(0.64)

    def test_a_zero_vector_agrees_with_itself_alone(self) -> None:
        agreement = dense_agreement(floats([0, 0], [0, 0]), floats([0, 0], [1, 0]))
        assert (agreement.cosine_min, agreement.cosine_mean) == (0, 0.5)

    def test_sparse_ids(self) -> None:
        reference = [sparse(i1=3, i2=2, i3=1), sparse(i7=1)]
        candidate = [sparse(i1=3, i3=2, i9=1), sparse(i7=5)]
        agreement = sparse_agreement(reference, candidate, k=2)
        assert agreement.jaccard == pytest.approx((2 / 4 + 1) / 2)
        assert agreement.top_same == 0.5  # {1, 2} against {1, 3}; {7} against {7}
        assert agreement.top_common == pytest.approx((1 / 2 + 1) / 2)

    def test_empty_sparse_vectors(self) -> None:
        empty = sparse_agreement([sparse()], [sparse()])
        assert (empty.jaccard, empty.top_same, empty.top_common) == (1, 1, 1)
        one_empty = sparse_agreement([sparse(i1=1)], [sparse()])
        assert (one_empty.jaccard, one_empty.top_same, one_empty.top_common) == (0, 0, 0)

    def test_colbert_scores_are_the_mean_of_the_best_matches(self) -> None:
        queries = [floats([1, 0], [0, 1]), np.zeros((0, 2), dtype=np.float32)]
        scores = colbert_scores(queries, [floats([1, 0]), floats([0.6, 0.8])])
        np.testing.assert_allclose(scores, [[0.5, 0.7], [0, 0]], rtol=1e-6)

    def test_colbert_difference(self) -> None:
        agreement = colbert_agreement(floats([0.5, 0.75]), floats([0.25, 0.75]))
        assert (agreement.maxsim_largest, agreement.maxsim_mean) == (0.25, 0.125)

    def test_drift(self) -> None:
        alone = Embeddings(
            floats([1, 0], [1, 0]), [sparse(i1=1), sparse()], [floats([1, 0]), floats()]
        )
        together = Embeddings(
            floats([1, 0], [0.8, 0.6]),
            [sparse(i1=1.5), sparse(i2=0.25)],
            [floats([0.5, 0]), floats()],
        )
        drift = batch_drift(alone, together)
        assert drift.dense_cosine == pytest.approx(0.2)
        assert drift.dense == pytest.approx(0.6)
        assert (drift.sparse, drift.colbert) == (0.5, 0.5)

    def test_drift_of_a_head_that_the_model_lacks(self) -> None:
        dense = Embeddings(floats([1, 0]))
        assert batch_drift(dense, dense) == Drift(0, 0, None, None)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_result_agrees_fully_with_itself(texts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(texts, 8)).astype(np.float32)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    vectors = [
        SparseVector(np.sort(rng.choice(30, size, replace=False)), rng.uniform(0.1, 1, size))
        for size in rng.integers(0, 9, texts)
    ]
    embeddings = Embeddings(dense, vectors)
    names = [str(i) for i in range(texts)]
    assert set(dataclasses.astuple(dense_agreement(dense, dense))) == {1}
    assert set(dataclasses.astuple(sparse_agreement(vectors, vectors))) == {1}
    assert batch_drift(embeddings, embeddings) == Drift(0, 0, 0, None)
    for run in rank_documents(embeddings, embeddings, names, names).values():
        assert overlap(run, run) == 1
