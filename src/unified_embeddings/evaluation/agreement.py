"""How far one model's vectors are from another's, and what that does to what is found.

What lives here: pure functions over two `Embeddings`, and the rows they are put into. What does
not: making the vectors (`measurement`), showing the rows (`cli`).

"Reference" is the model in fp32, "candidate" the same model in another precision or engine. A
reference compared with itself agrees fully: 1 for every share, 0 for every difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.heads import colbert_score
from unified_embeddings.types import Embeddings, FloatArray, SparseVector

TOP_IDS = 5
"""Heaviest ids of a sparse vector that are compared."""


@dataclass(frozen=True)
class DenseAgreement:
    """Cosine similarity of each text's two dense vectors.

    Attributes:
        cosine_min: The smallest over the texts.
        cosine_mean: Their mean.
        cosine_p5: Their 5th percentile.
    """

    cosine_min: float
    cosine_mean: float
    cosine_p5: float


@dataclass(frozen=True)
class SparseAgreement:
    """How far each text's two sparse vectors name the same vocabulary ids.

    Attributes:
        jaccard: Ids in both over ids in either, mean over the texts.
        top_same: Share of the texts whose heaviest ids are the same set.
        top_common: Share of the reference's heaviest ids that are among the candidate's, mean over
            the texts that have any.
    """

    jaccard: float
    top_same: float
    top_common: float


@dataclass(frozen=True)
class ColbertAgreement:
    """Absolute difference of the ColBERT score (MaxSim over query rows, mean) of text pairs.

    Attributes:
        maxsim_largest: The largest over the pairs.
        maxsim_mean: Their mean.
    """

    maxsim_largest: float
    maxsim_mean: float


@dataclass(frozen=True)
class Agreement:
    """A candidate's vectors beside the reference's; None for a head the model has not."""

    dense: DenseAgreement | None = None
    sparse: SparseAgreement | None = None
    colbert: ColbertAgreement | None = None


@dataclass(frozen=True)
class Drift:
    """How far a text's vectors depend on its batch-mates; None for a head the model has not.

    Attributes:
        dense_cosine: Largest 1 - cosine of a text embedded alone and among others.
        dense: Largest absolute difference of a value of the dense vectors.
        sparse: Largest absolute difference of a weight; an id that is missing weighs 0.
        colbert: Largest absolute difference of a value of the ColBERT vectors.
    """

    dense_cosine: float | None = None
    dense: float | None = None
    sparse: float | None = None
    colbert: float | None = None


# --- vectors ------------------------------------------------------------------------------------


def dense_agreement(reference: FloatArray, candidate: FloatArray) -> DenseAgreement:
    """Compare unit vectors, float32 (n, d) each, row by row; n >= 1."""
    cosines = _cosines(reference, candidate)
    return DenseAgreement(
        float(cosines.min()), float(cosines.mean()), float(np.percentile(cosines, 5))
    )


def sparse_agreement(
    reference: Sequence[SparseVector], candidate: Sequence[SparseVector], k: int = TOP_IDS
) -> SparseAgreement:
    """Compare n sparse vectors each, text by text; n >= 1. Two empty vectors agree fully."""
    jaccard, same, common = [], [], []
    for one, other in zip(reference, candidate, strict=True):
        either = {*one} | {*other}
        jaccard.append(len({*one} & {*other}) / len(either) if either else 1.0)
        tops = _heaviest(one, k), _heaviest(other, k)
        same.append(tops[0] == tops[1])
        if tops[0]:
            common.append(len(tops[0] & tops[1]) / len(tops[0]))
    return SparseAgreement(
        float(np.mean(jaccard)), float(np.mean(same)), float(np.mean(common)) if common else 1.0
    )


def colbert_agreement(reference: FloatArray, candidate: FloatArray) -> ColbertAgreement:
    """Compare the scores of the same pairs, float (queries, documents) each."""
    differences = np.abs(np.subtract(reference, candidate, dtype=np.float64))
    return ColbertAgreement(float(differences.max()), float(differences.mean()))


def colbert_scores(queries: Sequence[FloatArray], documents: Sequence[FloatArray]) -> FloatArray:
    """The ColBERT score of every pair, float32 (queries, documents); 0 for a text without rows."""
    return np.array(
        [[colbert_score(q, d) if len(q) and len(d) else 0.0 for d in documents] for q in queries],
        dtype=np.float32,
    )


def drift(alone: Embeddings, together: Embeddings) -> Drift:
    """Compare the vectors of the same texts, embedded one by one and in one call."""
    dense_cosine = dense = sparse = colbert = None
    if alone.dense is not None and together.dense is not None:
        dense_cosine = float((1 - _cosines(alone.dense, together.dense)).max())
        dense = _largest_difference(alone.dense, together.dense)
    if alone.sparse is not None and together.sparse is not None:
        sparse = max(map(_largest_weight_difference, alone.sparse, together.sparse))
    if alone.colbert is not None and together.colbert is not None:
        colbert = max(map(_largest_difference, alone.colbert, together.colbert))
    return Drift(dense_cosine, dense, sparse, colbert)


def _cosines(one: FloatArray, other: FloatArray) -> NDArray[np.float64]:
    """Of each pair of rows; in float64, where 1 - cosine of near vectors is more than rounding."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(axis=1) / np.where(norms > 0, norms, 1)
    same = (first == second).all(axis=1)  # two zero vectors too
    return np.asarray(np.where(same, 1, np.clip(cosines, -1, 1)))


def _largest_difference(one: FloatArray, other: FloatArray) -> float:
    return float(np.abs(one - other).max(initial=0))


def _largest_weight_difference(one: SparseVector, other: SparseVector) -> float:
    return max((abs(one.get(i, 0.0) - other.get(i, 0.0)) for i in {*one} | {*other}), default=0.0)


def _heaviest(vector: SparseVector, k: int) -> set[int]:
    """The k ids of the largest weights; of equal weights the smaller id."""
    return set(vector.indices[np.argsort(-vector.values, kind="stable")[:k]].tolist())


# --- rankings -----------------------------------------------------------------------------------
