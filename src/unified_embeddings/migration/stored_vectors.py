"""A point's vectors as a store gives them, compared with a model's."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from qdrant_client import models as qm

from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR
from unified_embeddings.types import FloatArray

_TINY = 1e-12


def named_vectors(point: qm.Record) -> Mapping[str, object]:
    """Return a point's vectors by name."""
    return point.vector if isinstance(point.vector, dict) else {}


def dense_of(vectors: Mapping[str, object]) -> FloatArray:
    """Return a point's dense vector, float64 (d,); empty if it has none."""
    return np.asarray(vectors.get(DENSE_VECTOR, ()), dtype=np.float64)


def weights_of(vectors: Mapping[str, object]) -> dict[int, float]:
    """Return a point's sparse vector; none is an empty one, as of a text without words."""
    sparse = vectors.get(SPARSE_VECTOR)
    if not isinstance(sparse, qm.SparseVector):
        return {}
    return dict(zip(sparse.indices, sparse.values, strict=True))


def dense_cosine(first: FloatArray, second: FloatArray) -> float:
    """Return the cosine of two dense vectors, (d,) each."""
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.dot(first, second)) / max(lengths, _TINY)


def sparse_cosine(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """Return the cosine of two sparse vectors; two empty ones are equal."""
    if not first and not second:
        return 1.0
    product = sum(weight * second.get(token, 0.0) for token, weight in first.items())
    return product / max(_length(first) * _length(second), _TINY)


def _length(weights: Mapping[int, float]) -> float:
    return math.sqrt(sum(weight * weight for weight in weights.values()))
