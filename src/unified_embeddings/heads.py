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
"""The smallest norm divided by, as in torch.nn.functional.normalize: a zero vector stays zero."""


def normalise(vectors: FloatArray) -> FloatArray:
    """Scale each row to unit length (L2): dense vectors and ColBERT rows alike.

    Args:
        vectors: (n, d), any finite values; (0, d) is fine.

    Returns:
        A new float32 array (n, d). A zero row stays zero.
    """
    rows = np.asarray(vectors, dtype=np.float32)
    # What np.linalg.norm computes, without its checks, which take longer than one row does.
    norms = np.sqrt(np.add.reduce(rows * rows, axis=-1, keepdims=True))
    return np.asarray(rows / np.maximum(norms, _EPSILON), dtype=np.float32)


def to_sparse(
    token_ids: IntArray,
    weights: FloatArray,
    *,
    special_ids: frozenset[int],
    sum_repeats: bool = False,
) -> SparseVector:
    """Collapse per-token weights into one weight per vocabulary id.

    A token that occurs twice keeps its larger weight (BGE-M3's rule), unless `sum_repeats` says
    otherwise. Special tokens and zero weights are dropped, so blank text gives an empty vector.

    Args:
        token_ids: Vocabulary ids of one text, (t,).
        weights: Their weights after ReLU, (t,), >= 0.
        special_ids: Ids that are never indexed: cls, eos, pad, unk.
        sum_repeats: Whether a token that occurs twice has the sum of its weights instead, as a
            query in BM25 counts a word as often as it holds it.

    Raises:
        ValueError: If the two arrays differ in shape.
    """
    ids = np.asarray(token_ids)
    raw_weights = np.asarray(weights, dtype=np.float32)
    if ids.shape != raw_weights.shape or ids.ndim != 1:
        raise ValueError(f"token_ids {ids.shape} and weights {raw_weights.shape} must both be (t,)")
    is_indexed = raw_weights > 0
    # They are a few; np.isin would take longer than the rest of this function.
    for special_id in special_ids:
        is_indexed &= ids != special_id
    kept_ids = ids[is_indexed]
    order = kept_ids.argsort(kind="stable")
    sorted_ids = kept_ids[order]
    sorted_weights = raw_weights[is_indexed][order]
    if not len(sorted_ids):
        return SparseVector(sorted_ids, sorted_weights)
    is_first = np.ones(len(sorted_ids), dtype=np.bool_)
    np.not_equal(sorted_ids[1:], sorted_ids[:-1], out=is_first[1:])
    starts = is_first.nonzero()[0]
    unique_ids = sorted_ids[starts]
    if sum_repeats:
        # One after the other, in the text's order: reduceat adds in pairs, and rounds otherwise.
        collapsed_weights = np.zeros(len(unique_ids), dtype=np.float32)
        np.add.at(collapsed_weights, is_first.cumsum() - 1, sorted_weights)
    else:
        collapsed_weights = np.maximum.reduceat(sorted_weights, starts)
    return SparseVector(unique_ids, collapsed_weights)


def dense_score(query: FloatArray, document: FloatArray) -> float:
    """Return the cosine similarity of two unit vectors (d,), in [-1, 1]."""
    return float(np.dot(query, document))


def sparse_score(query: SparseVector, document: SparseVector) -> float:
    """Return the sum of products over the ids that both texts have, >= 0; 0 if they share none."""
    _, query_positions, document_positions = np.intersect1d(
        query.indices, document.indices, assume_unique=True, return_indices=True
    )
    query_weights = query.values[query_positions]
    document_weights = document.values[document_positions]
    return float(np.dot(query_weights, document_weights))


def colbert_map(query: FloatArray, document: FloatArray) -> FloatArray:
    """Return the dot product of each query row with each document row, float32 (q, t).

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
    products: FloatArray = query @ document.T
    return products


def colbert_score(query: FloatArray, document: FloatArray) -> float:
    """Return the late-interaction score: the mean of each query row's best dot product.

    This is FlagEmbedding's `colbert_score`: ColBERT's MaxSim divided by the number of query rows.

    Args:
        query: Unit rows, (q, d), q >= 1.
        document: Unit rows, (t, d), t >= 1.

    Raises:
        ValueError: If either has no rows or the dimensions differ.
    """
    return float(colbert_map(query, document).max(axis=1).mean())
