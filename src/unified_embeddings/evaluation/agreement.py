"""How far one model's vectors are from another's.

What lives here: pure functions over two sets of vectors, and the records they return. What does
not: making the vectors (`measurement`), rankings of documents (`rankings`), and the rows that a
comparison is made of (`comparison`).

"Reference" is the model in fp32, "candidate" the same model in another precision or engine. A
reference compared with itself agrees fully: every share is 1, every difference 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.heads import colbert_score
from unified_embeddings.types import Embeddings, FloatArray, SparseVector

TOP_IDS = 5
"""Number of heaviest ids of a sparse vector that are compared."""


@dataclass(frozen=True)
class DenseAgreement:
    """Cosine similarity of each text's two dense vectors.

    Attributes:
        cosine_min: Minimum over the texts.
        cosine_mean: Mean over the texts.
        cosine_p5: 5th percentile over the texts.
    """

    cosine_min: float
    cosine_mean: float
    cosine_p5: float


@dataclass(frozen=True)
class SparseAgreement:
    """How far each text's two sparse vectors contain the same vocabulary ids.

    Attributes:
        jaccard: Number of ids in both divided by the number of ids in either, mean over the texts.
        top_same: Share of the texts whose heaviest ids are the same set.
        top_common: Share of the reference's heaviest ids that are among the candidate's, mean over
            the texts for which the reference has any.
    """

    jaccard: float
    top_same: float
    top_common: float


@dataclass(frozen=True)
class ColbertAgreement:
    """Absolute difference of the ColBERT scores (MaxSim, mean over query rows) of text pairs.

    Attributes:
        maxsim_largest: Maximum over the pairs.
        maxsim_mean: Mean over the pairs.
    """

    maxsim_largest: float
    maxsim_mean: float


@dataclass(frozen=True)
class Agreement:
    """A candidate's vectors compared with the reference's; None for a head that the model lacks."""

    dense: DenseAgreement | None = None
    sparse: SparseAgreement | None = None
    colbert: ColbertAgreement | None = None


@dataclass(frozen=True)
class Drift:
    """How far a text's vectors depend on its batch-mates; None for a head that the model lacks.

    Attributes:
        dense_cosine: Largest 1 - cosine between a text embedded alone and among others.
        dense: Largest absolute difference of a value of the dense vectors.
        sparse: Largest absolute difference of a weight. A missing id has weight 0.
        colbert: Largest absolute difference of a value of the ColBERT vectors.
    """

    dense_cosine: float | None = None
    dense: float | None = None
    sparse: float | None = None
    colbert: float | None = None


def dense_agreement(reference: FloatArray, candidate: FloatArray) -> DenseAgreement:
    """Compare two sets of unit vectors row by row.

    Args:
        reference: float32 (n, d), n >= 1.
        candidate: float32 (n, d).
    """
    cosines = _row_cosines(reference, candidate)
    # The 5th percentile tells whether a low minimum is one outlier or many texts.
    return DenseAgreement(
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        cosine_p5=float(np.percentile(cosines, 5)),
    )


def sparse_agreement(
    reference: Sequence[SparseVector], candidate: Sequence[SparseVector], k: int = TOP_IDS
) -> SparseAgreement:
    """Compare two sets of sparse vectors text by text. Two empty vectors agree fully.

    Args:
        reference: n sparse vectors, n >= 1.
        candidate: n sparse vectors.
        k: Number of heaviest ids to compare.
    """
    jaccards = []
    same_tops = []
    common_shares = []
    for reference_vector, candidate_vector in zip(reference, candidate, strict=True):
        jaccards.append(_jaccard(set(reference_vector), set(candidate_vector)))
        reference_top = _heaviest_ids(reference_vector, k)
        candidate_top = _heaviest_ids(candidate_vector, k)
        same_tops.append(reference_top == candidate_top)
        # A share of nothing is undefined, so such texts do not count.
        if reference_top:
            common_shares.append(len(reference_top & candidate_top) / len(reference_top))
    return SparseAgreement(
        jaccard=float(np.mean(jaccards)),
        top_same=float(np.mean(same_tops)),
        top_common=float(np.mean(common_shares)) if common_shares else 1.0,
    )


def colbert_agreement(reference: FloatArray, candidate: FloatArray) -> ColbertAgreement:
    """Compare the ColBERT scores of the same pairs.

    Args:
        reference: float (queries, documents).
        candidate: float (queries, documents).
    """
    differences = np.abs(np.subtract(reference, candidate, dtype=np.float64))
    return ColbertAgreement(
        maxsim_largest=float(differences.max()), maxsim_mean=float(differences.mean())
    )


def colbert_scores(queries: Sequence[FloatArray], documents: Sequence[FloatArray]) -> FloatArray:
    """Return the ColBERT score of every pair, float32 (queries, documents).

    The score of a text without rows is 0.
    """
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    for row, query in enumerate(queries):
        for column, document in enumerate(documents):
            # `colbert_score` rejects a text without rows.
            if len(query) and len(document):
                scores[row, column] = colbert_score(query, document)
    return scores


def batch_drift(alone: Embeddings, together: Embeddings) -> Drift:
    """Compare the vectors of the same texts, embedded one by one and in one call."""
    dense_cosine = dense = sparse = colbert = None
    if alone.dense is not None and together.dense is not None:
        cosines = _row_cosines(alone.dense, together.dense)
        dense_cosine = float((1 - cosines).max())
        dense = _largest_difference(alone.dense, together.dense)
    if alone.sparse is not None and together.sparse is not None:
        sparse = max(map(_largest_weight_difference, alone.sparse, together.sparse))
    if alone.colbert is not None and together.colbert is not None:
        colbert = max(map(_largest_difference, alone.colbert, together.colbert))
    return Drift(dense_cosine=dense_cosine, dense=dense, sparse=sparse, colbert=colbert)


def _row_cosines(first: FloatArray, second: FloatArray) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows, float64 (n,).

    They are computed in float64: in float32, 1 - cosine of two close vectors is mostly rounding.
    """
    first_rows = first.astype(np.float64)
    second_rows = second.astype(np.float64)
    norms = np.linalg.norm(first_rows, axis=1) * np.linalg.norm(second_rows, axis=1)
    divisors = np.where(norms > 0, norms, 1)
    cosines = (first_rows * second_rows).sum(axis=1) / divisors
    # Equal rows have a cosine of exactly 1, where the quotient may be off by rounding, so that a
    # model agrees fully with itself. Two zero vectors count as equal.
    are_equal = (first_rows == second_rows).all(axis=1)
    cosines = np.clip(cosines, -1, 1)
    return np.asarray(np.where(are_equal, 1, cosines))


def _jaccard(first_ids: set[int], second_ids: set[int]) -> float:
    """Return the number of ids in both sets divided by the number in either; 1 for empty sets."""
    all_ids = first_ids | second_ids
    if not all_ids:
        return 1.0
    return len(first_ids & second_ids) / len(all_ids)


def _largest_difference(first: FloatArray, second: FloatArray) -> float:
    return float(np.abs(first - second).max(initial=0))


def _largest_weight_difference(first: SparseVector, second: SparseVector) -> float:
    largest = 0.0
    for token_id in {*first, *second}:
        difference = abs(first.get(token_id, 0.0) - second.get(token_id, 0.0))
        largest = max(largest, difference)
    return largest


def _heaviest_ids(vector: SparseVector, k: int) -> set[int]:
    """Return the k ids with the largest weights; of equal weights the smaller id comes first."""
    # The ids ascend, so a stable sort keeps the smaller of equally heavy ids in front.
    order = np.argsort(-vector.values, kind="stable")
    return set(vector.indices[order[:k]].tolist())
