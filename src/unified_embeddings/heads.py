"""Pure functions from a model's raw outputs to the three kinds of vectors, and their scores.

What lives here: NumPy arithmetic without state. What does not: the linear layers of the sparse and
ColBERT heads, which run beside the backbone in the engines.

The rules are BGE-M3's (Chen et al. 2024, "M3-Embedding", section 3.2) as its reference
implementation, FlagEmbedding, applies them.
"""

from __future__ import annotations

import numpy as np

from unified_embeddings.types import FloatArray, IntArray, SparseVector

_EPSILON = np.float32(1e-12)
"""Smallest norm divided by, as torch.nn.functional.normalize has it: a zero vector stays zero."""


def normalise(vectors: FloatArray) -> FloatArray:
    """Scale each row to unit length (L2): dense vectors and ColBERT rows alike.

    Args:
        vectors: (n, d), any finite values; (0, d) is fine.

    Returns:
        A new float32 array (n, d). A zero row stays zero.
    """
    rows = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, _EPSILON), dtype=np.float32)


def to_sparse(
    token_ids: IntArray, weights: FloatArray, *, special_ids: frozenset[int]
) -> SparseVector:
    """Collapse per-token weights into one weight per vocabulary id.

    A token that occurs twice keeps its larger weight (BGE-M3's rule, not the sum).
    Special tokens and zero weights are dropped, so blank text gives an empty vector.

    Args:
        token_ids: Vocabulary ids of one text, (t,).
        weights: Their weights after ReLU, (t,), >= 0.
        special_ids: Ids that are never indexed: cls, eos, pad, unk.

    Raises:
        ValueError: If the two arrays differ in shape.
    """
    ids, raw = np.asarray(token_ids), np.asarray(weights, dtype=np.float32)
    if ids.shape != raw.shape or ids.ndim != 1:
        raise ValueError(f"token_ids {ids.shape} and weights {raw.shape} must both be (t,)")
    kept = raw > 0
    if special_ids:
        kept &= ~np.isin(ids, list(special_ids))
    unique, inverse = np.unique(ids[kept], return_inverse=True)
    largest = np.zeros(len(unique), dtype=np.float32)
    np.maximum.at(largest, inverse, raw[kept])
    return SparseVector(unique, largest)


def dense_score(query: FloatArray, document: FloatArray) -> float:
    """Cosine similarity of two unit vectors (d,), in [-1, 1]."""
    return float(np.dot(query, document))


def sparse_score(query: SparseVector, document: SparseVector) -> float:
    """Sum of products over the ids both texts have, >= 0; 0 if they share none."""
    _, at_query, at_document = np.intersect1d(
        query.indices, document.indices, assume_unique=True, return_indices=True
    )
    return float(np.dot(query.values[at_query], document.values[at_document]))


def colbert_score(query: FloatArray, document: FloatArray) -> float:
    """Late interaction: the mean over query rows of the best dot product with a document row.

    FlagEmbedding's `colbert_score`: ColBERT's MaxSim divided by the number of query rows.

    Args:
        query: Unit rows, (q, d), q >= 1.
        document: Unit rows, (t, d), t >= 1.

    Raises:
        ValueError: If either has no rows or the dimensions differ.
    """
    if query.ndim != 2 or document.ndim != 2 or query.shape[1] != document.shape[1]:
        raise ValueError(f"expected (q, d) and (t, d), got {query.shape} and {document.shape}")
    if not len(query) or not len(document):
        raise ValueError("a ColBERT score needs at least one row on each side")
    return float((query @ document.T).max(axis=1).mean())
