"""A vector on its way into the core, checked for what the core takes without a word.

Qdrant's core stores NaN, sparse vectors whose indices repeat, and indices without values; a query
with a NaN finds nothing. A server refuses them, and so does this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import qdrant_edge as core
from qdrant_client import models

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.types import FloatArray

_LARGEST_INDEX = 2**32 - 1


def to_core(name: str, vector: Any, settings: Settings) -> Any:
    """One vector as the core takes it.

    Args:
        name: Which of the collection's vectors it is; "" for the unnamed one.
        vector: Numbers (d,), rows of numbers (t, d) for a multi-vector, or a sparse vector; lists
            or arrays.
        settings: The collection's.

    Returns:
        A list, a list of lists, or a sparse vector of the core with ascending indices.

    Raises:
        InputError: If the collection has no vector of this name and kind, or the vector has another
            dimension, NaN, infinity, no row, or indices that repeat, are out of range or have not
            one value each.
    """
    if isinstance(vector, models.SparseVector):
        if name not in settings.sparse_vectors:
            raise _wrong_name(name, "sparse", settings)
        return _sparse(name, vector)
    params = settings.vectors.get(name)
    if params is None:
        raise _wrong_name(name, "dense", settings)
    try:
        array = _float32(vector)
    except (TypeError, ValueError):
        raise InputError(
            f"vector {name!r} must be {params.size} numbers, got {vector!r:.80}"
        ) from None
    multi = params.multivector_config is not None
    if multi and array.ndim == 1 and array.size:
        array = array[None]  # one row, as Qdrant takes it too
    if array.ndim != 1 + multi or array.shape[-1] != params.size or not array.size:
        shape = f"(rows, {params.size})" if multi else f"({params.size},)"
        raise InputError(f"vector {name!r} must have shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"vector {name!r} holds NaN, infinity or a number beyond float32")
    return array.tolist()


def named(vector: Any) -> Mapping[str, Any]:
    """A point's vectors by name, the unnamed one under "".

    Raises:
        InputError: If it is a text or an image, which would have to be embedded first.
    """
    if isinstance(vector, Mapping):
        return vector
    if isinstance(vector, list | np.ndarray):
        return {"": vector}
    raise InputError(
        f"a vector must be numbers or a dict of them by name, got {type(vector).__name__}; embed "
        "texts and images first"
    )


def all_to_core(vector: Any, settings: Settings) -> dict[str, Any]:
    """A point's vectors as the core takes them, see `to_core`."""
    return {name: to_core(name, one, settings) for name, one in named(vector).items()}


def _float32(numbers: Any) -> FloatArray:
    with np.errstate(over="ignore"):  # what is too large for float32 is refused as infinity
        return np.asarray(numbers, dtype=np.float32)


def _sparse(name: str, vector: models.SparseVector) -> Any:
    indices, values = np.asarray(vector.indices), _float32(vector.values)
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
        raise InputError(f"sparse vector {name!r} holds NaN, infinity or a number beyond float32")
    order = np.argsort(indices, kind="stable")
    indices = indices[order]
    twice = indices[1:][indices[1:] == indices[:-1]]
    if twice.size:
        raise InputError(f"sparse vector {name!r} has index {twice[0]} more than once")
    return core.SparseVector(indices.tolist(), values[order].tolist())


def _wrong_name(name: str, kind: str, settings: Settings) -> InputError:
    there = ", ".join(map(repr, settings.vectors)) or "none"
    sparse = ", ".join(map(repr, settings.sparse_vectors)) or "none"
    shown = f"named {name!r}" if name else "without a name"
    return InputError(
        f"the collection has no {kind} vector {shown}; dense there: {there}; sparse there: {sparse}"
    )
