"""Dense and sparse vectors as plain NumPy arrays, which `.npz` files hold without pickle.

What lives here: both directions. What does not: writing and reading the file (`measurement`).
"""

from __future__ import annotations

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from unified_embeddings.types import Embeddings, SparseVector


def pack_embeddings(role: str, embeddings: Embeddings) -> dict[str, NDArray[np.generic]]:
    """Return the dense and sparse vectors of n texts as arrays, whose names begin with `role`.

    The arrays are ROLE_dense, float32 (n, d), ROLE_lengths, int64 (n,), and the sparse vectors
    one after the other: ROLE_indices, int32, and ROLE_values, float32. ColBERT vectors are left
    out.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    if embeddings.dense is not None:
        arrays[f"{role}_dense"] = embeddings.dense
    if embeddings.sparse is not None:
        lengths = [len(vector) for vector in embeddings.sparse]
        arrays[f"{role}_lengths"] = np.array(lengths, dtype=np.int64)
        indices = [vector.indices for vector in embeddings.sparse]
        values = [vector.values for vector in embeddings.sparse]
        arrays[f"{role}_indices"] = np.concatenate(indices)
        arrays[f"{role}_values"] = np.concatenate(values)
    return arrays


def unpack_embeddings(role: str, arrays: NpzFile) -> Embeddings:
    """Return the vectors that `pack_embeddings` packed under the same role."""
    dense = sparse = None
    if f"{role}_dense" in arrays:
        dense = arrays[f"{role}_dense"]
    if f"{role}_lengths" in arrays:
        # np.split takes the positions between the parts, so the last end is left out.
        ends = np.cumsum(arrays[f"{role}_lengths"])[:-1]
        indices_parts = np.split(arrays[f"{role}_indices"], ends)
        values_parts = np.split(arrays[f"{role}_values"], ends)
        sparse = [
            SparseVector(indices, values)
            for indices, values in zip(indices_parts, values_parts, strict=True)
        ]
    return Embeddings(dense=dense, sparse=sparse)
