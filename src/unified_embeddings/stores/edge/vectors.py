"""Vectors as Qdrant's core takes them, checked for what the core accepts silently.

The core stores NaN, sparse vectors with duplicate indices, and indices without values; a query with
a NaN finds nothing. A server rejects these, and so does this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.core_types import CoreVector
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.types import FloatArray

_LARGEST_INDEX = 2**32 - 1
_NOT_FINITE = "contains NaN, infinity or a number too large for float32"


def to_core_vector(name: str, vector: Any, settings: Settings) -> CoreVector:
    """Return one vector as the core takes it.

    Args:
        name: Which of the collection's vectors it is; "" for the unnamed one.
        vector: Numbers (d,), rows of numbers (t, d) for a multi-vector, or a sparse vector; lists
            or arrays. One row (d,) is accepted for a multi-vector.
        settings: The collection's settings.

    Returns:
        A list, a list of lists, or the core's sparse vector with ascending indices.

    Raises:
        InputError: If the collection has no vector of this name and type. If the vector has another
            dimension, no rows, NaN or infinity. If a sparse vector has duplicate or out-of-range
            indices, or a different number of values.
    """
    if isinstance(vector, qm.SparseVector):
        if name not in settings.sparse_vectors:
            raise _unknown_name_error(name, "sparse", settings)
        return _to_core_sparse_vector(name, vector)
    params = settings.vectors.get(name)
    if params is None:
        raise _unknown_name_error(name, "dense", settings)
    return _to_core_dense_vector(name, vector, params)


def to_core_vectors(vectors: Any, settings: Settings) -> dict[str, CoreVector]:
    """Return a point's vectors by name, as the core takes them; see `to_core_vector`."""
    return {
        name: to_core_vector(name, vector, settings)
        for name, vector in _vectors_by_name(vectors).items()
    }


def unwrap_unnamed(vectors: dict[str, CoreVector]) -> Any:
    """Return a point's vectors as the core's `Point` takes them: a lone unnamed one by itself."""
    if set(vectors) == {""}:
        return vectors[""]
    return vectors


def approximate_bytes(vectors: dict[str, CoreVector]) -> int:
    """Return about how many bytes a point's vectors take."""
    numbers = 0
    for vector in vectors.values():
        if isinstance(vector, core.SparseVector):
            numbers += 2 * len(vector.indices)  # an index and a value
        elif isinstance(vector[0], list):
            numbers += len(vector) * len(vector[0])
        else:
            numbers += len(vector)
    return 4 * numbers


def _vectors_by_name(vectors: Any) -> Mapping[str, Any]:
    """Return a point's vectors by name, the unnamed one under "".

    Raises:
        InputError: If it is a text or an image, which would have to be embedded first.
    """
    if isinstance(vectors, Mapping):
        return vectors
    if isinstance(vectors, list | np.ndarray):
        return {"": vectors}
    raise InputError(
        f"a vector must be numbers or a dict of them by name, got {type(vectors).__name__}; embed "
        "texts and images first"
    )


def _to_core_dense_vector(name: str, vector: Any, params: qm.VectorParams) -> CoreVector:
    try:
        array = _to_float32(vector)
    except (TypeError, ValueError):
        raise InputError(
            f"vector {name!r} must be {params.size} numbers, got {vector!r:.80}"
        ) from None
    is_multi_vector = params.multivector_config is not None
    if is_multi_vector and array.ndim == 1 and array.size:
        array = array[None]  # a single row, which Qdrant accepts too
    expected_ndim = 2 if is_multi_vector else 1
    if array.ndim != expected_ndim or array.shape[-1] != params.size or not array.size:
        expected_shape = f"(rows, {params.size})" if is_multi_vector else f"({params.size},)"
        raise InputError(f"vector {name!r} must have shape {expected_shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"vector {name!r} {_NOT_FINITE}")
    return array.tolist()


def _to_core_sparse_vector(name: str, vector: qm.SparseVector) -> CoreVector:
    indices = np.asarray(vector.indices)
    values = _to_float32(vector.values)
    if indices.shape != values.shape:
        raise InputError(
            f"sparse vector {name!r} has {indices.size} indices and {values.size} values; each "
            "index needs one value"
        )
    if not indices.size:
        return core.SparseVector([], [])
    if indices.min() < 0 or indices.max() > _LARGEST_INDEX:
        raise InputError(f"sparse vector {name!r}: indices must be from 0 to {_LARGEST_INDEX}")
    if not np.isfinite(values).all():
        raise InputError(f"sparse vector {name!r} {_NOT_FINITE}")
    order = np.argsort(indices, kind="stable")
    indices = indices[order]
    duplicates = indices[1:][indices[1:] == indices[:-1]]
    if duplicates.size:
        raise InputError(f"sparse vector {name!r} has index {duplicates[0]} more than once")
    return core.SparseVector(indices.tolist(), values[order].tolist())


def _to_float32(numbers: Any) -> FloatArray:
    with np.errstate(over="ignore"):  # too large for float32 becomes infinity, refused later
        return np.asarray(numbers, dtype=np.float32)


def _unknown_name_error(name: str, vector_type: str, settings: Settings) -> InputError:
    dense_names = ", ".join(map(repr, settings.vectors)) or "none"
    sparse_names = ", ".join(map(repr, settings.sparse_vectors)) or "none"
    shown_name = f"named {name!r}" if name else "without a name"
    return InputError(
        f"the collection has no {vector_type} vector {shown_name}; its dense vectors: "
        f"{dense_names}; its sparse vectors: {sparse_names}"
    )
