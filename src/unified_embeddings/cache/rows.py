"""A vector as a row of the cache's file, and whether a row can be believed.

What lives here: the bytes of a value, and a checksum over them and their key. What does not: the
file (`disk_tier`).
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from unified_embeddings.cache.keys import Key, Value
from unified_embeddings.types import FloatArray, SparseVector

_ARRAY_1D, _ARRAY_2D, _SPARSE = 0, 1, 2
"""Values of the column "kind"."""


class Row(NamedTuple):
    """One value as it is in the file.

    Attributes:
        kind: What the bytes are: an array of one or two dimensions, or a sparse vector.
        width: Row length of a 2-d array, length of a 1-d one, number of weights of a sparse vector.
        data: Little-endian float32; of a sparse vector its int32 indices first.
        checksum: BLAKE2b over the key and all of the above.
    """

    kind: int
    width: int
    data: bytes
    checksum: bytes


def pack(key: Key, value: Value) -> Row:
    """Return a value's row.

    Raises:
        ValueError: If it is not what a cache keeps: float32, one or two dimensions, finite.
    """
    if isinstance(value, SparseVector):
        data = value.indices.astype("<i4").tobytes() + value.values.astype("<f4").tobytes()
        kind, width = _SPARSE, len(value)
    else:
        if value.dtype != np.float32 or value.ndim not in (1, 2):
            raise ValueError(f"{value.dtype} {value.shape} is not a vector or rows of float32")
        _require_finite(value)
        data = value.astype("<f4").tobytes()
        kind = _ARRAY_1D if value.ndim == 1 else _ARRAY_2D
        width = value.shape[-1]
    return Row(kind, width, data, _checksum(key, kind, width, data))


def unpack(key: Key, row: Row) -> Value:
    """Return the value of a row.

    Raises:
        ValueError: If the row is damaged, or belongs to another key.
    """
    kind, width, data, checksum = row
    if not (isinstance(kind, int) and isinstance(width, int) and isinstance(data, bytes)):
        raise ValueError("a row holds values of the wrong types")
    if kind not in (_ARRAY_1D, _ARRAY_2D, _SPARSE) or not 0 <= width < 2**31:
        raise ValueError(f"there is no row of kind {kind} and width {width}")
    if checksum != _checksum(key, kind, width, data):
        raise ValueError("a row's checksum is wrong")
    if kind == _SPARSE:
        if len(data) != 8 * width:
            raise ValueError(f"a sparse vector of {width} weights takes {len(data)} bytes")
        indices = np.frombuffer(data, "<i4", count=width)
        return SparseVector(indices, np.frombuffer(data, "<f4", offset=4 * width))
    array: FloatArray = np.frombuffer(data, "<f4")
    if kind == _ARRAY_2D:
        array = array.reshape(-1, width)
    elif len(array) != width:
        raise ValueError(f"a vector of {width} numbers holds {len(array)}")
    _require_finite(array)
    return array


def _require_finite(array: FloatArray) -> None:
    if not np.isfinite(array).all():
        raise ValueError("a vector holds NaN or infinity")


def _checksum(key: Key, kind: int, width: int, data: bytes) -> bytes:
    digest = hashlib.blake2b(key, digest_size=16)
    digest.update(kind.to_bytes(8, "little") + width.to_bytes(8, "little"))
    digest.update(data)
    return digest.digest()
