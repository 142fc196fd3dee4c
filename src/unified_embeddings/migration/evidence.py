"""Whether the vectors that a collection holds are those that a model gives for the same texts.

What lives here: the comparison of two sets of vectors of a few texts, as numbers, and the rule that
decides by them. What does not: which texts are compared, and embedding them (`adoption`).

Cosine alone does not decide. The vectors of some models all point in nearly one direction, so that
any two of them are alike. So a text's vector must also be its own: nearer to the stored vector of
this text than to those of the other texts, and near to it still when what all vectors have in
common is taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.types import HeadName

_Matrix = NDArray[np.float64]

LEAST_PROBES = 10
"""Fewer texts prove nothing."""
_QUARTILE = 0.25
"""The least alike quarter of the texts may have changed since they were embedded."""
_LEAST_OWN_SHARE = 0.75
"""Texts whose own stored vector must be the nearest of all."""


@dataclass(frozen=True)
class Threshold:
    """What the vectors of one head have to reach.

    Attributes:
        cosine: Least cosine of a text's stored vector with its new one, at the lower quartile.
        centred: The same after the mean vector of each side is taken away.
    """

    cosine: float
    centred: float


THRESHOLDS: dict[HeadName, Threshold] = {
    "dense": Threshold(cosine=0.97, centred=0.9),
    "sparse": Threshold(cosine=0.97, centred=0.95),
}
"""The same model in int8 or bf16 stays above 0.978; other models stay below 0.96.

Unless their vectors are all alike, where the second number decides.
"""


@dataclass(frozen=True)
class Evidence:
    """How the stored vectors of some texts compare with a model's vectors of the same texts.

    Attributes:
        head: Which vectors.
        probes: Number of texts.
        cosine: Cosine of a text's stored vector with its new one: the lower quartile.
        median: The median of the same.
        others: Median cosine of a text's new vector with the stored vectors of other texts.
        centred: Lower quartile of the cosine after each side's mean was taken away.
        own_share: Share of the texts whose own stored vector is the nearest, and the other way.
    """

    head: HeadName
    probes: int
    cosine: float
    median: float
    others: float
    centred: float
    own_share: float

    @property
    def problem(self) -> str:
        """Why these are not the model's vectors; empty if they are."""
        threshold = THRESHOLDS[self.head]
        if self.probes < LEAST_PROBES:
            return f"only {self.probes} texts could be compared, {LEAST_PROBES} are needed"
        measured = (
            f"cosine {self.cosine:.3f} for three quarters of {self.probes} texts, median "
            f"{self.median:.3f}"
        )
        if self.cosine < threshold.cosine:
            return f"{measured}; {threshold.cosine} is needed"
        if self.centred < threshold.centred or self.own_share < _LEAST_OWN_SHARE:
            return (
                f"{measured}, but these vectors are all alike (median cosine with other texts "
                f"{self.others:.3f}): without what they have in common the cosine is "
                f"{self.centred:.3f}, where {threshold.centred} is needed, and for "
                f"{self.own_share:.0%} of the texts the nearest vector is its own"
            )
        return ""


def compare_dense(stored: _Matrix, embedded: _Matrix) -> Evidence:
    """Compare dense vectors.

    Args:
        stored: What the collection holds for n texts, (n, d).
        embedded: What the model gives for the same texts, (n, d).
    """
    return _compare("dense", stored, embedded)


def compare_sparse(
    stored: Sequence[Mapping[int, float]], embedded: Sequence[Mapping[int, float]]
) -> Evidence:
    """Compare sparse vectors, by the weights that they give to the same vocabulary ids.

    Args:
        stored: What the collection holds for n texts: vocabulary id → weight.
        embedded: What the model gives for the same texts.
    """
    vocabulary = sorted({token for vector in (*stored, *embedded) for token in vector})
    columns = {token: column for column, token in enumerate(vocabulary)}
    return _compare("sparse", _to_matrix(stored, columns), _to_matrix(embedded, columns))


def _to_matrix(vectors: Sequence[Mapping[int, float]], columns: dict[int, int]) -> _Matrix:
    matrix = np.zeros((len(vectors), max(1, len(columns))))
    for row, vector in enumerate(vectors):
        for token, weight in vector.items():
            matrix[row, columns[token]] = weight
    return matrix


def _compare(head: HeadName, stored: _Matrix, embedded: _Matrix) -> Evidence:
    count = len(stored)
    if not count:
        return Evidence(
            head, probes=0, cosine=0.0, median=0.0, others=0.0, centred=0.0, own_share=0.0
        )
    stored, embedded = _normalised(stored), _normalised(embedded)
    cosines = embedded @ stored.T
    own = cosines.diagonal()
    centred = _normalised(embedded - embedded.mean(axis=0)) @ (
        _normalised(stored - stored.mean(axis=0)).T
    )
    own_centred = centred.diagonal()
    is_nearest = (own_centred >= centred.max(axis=0)) & (own_centred >= centred.max(axis=1))
    others = cosines[~np.eye(count, dtype=bool)]
    return Evidence(
        head=head,
        probes=count,
        cosine=float(np.quantile(own, _QUARTILE)),
        median=float(np.median(own)),
        others=float(np.median(others)) if count > 1 else 0.0,
        centred=float(np.quantile(own_centred, _QUARTILE)),
        own_share=float(is_nearest.mean()),
    )


def _normalised(vectors: _Matrix) -> _Matrix:
    """Return rows of length 1; rows of zeros stay as they are."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
