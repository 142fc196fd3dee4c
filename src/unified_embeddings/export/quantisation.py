"""Weights in int8: the arithmetic, on arrays.

What lives here: scaling and rounding. What does not: the graph's nodes that take the result
(`graph`).

The weights of the layers' products have one scale for every block of them, and the token table has
one for each row. A large value spoils only its own block, so nothing has to be measured on sample
texts beforehand (ADR 16).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.types import FloatArray

ByteArray: TypeAlias = NDArray[np.uint8]
Int8Array: TypeAlias = NDArray[np.int8]

_LARGEST = 127
_ZERO_POINT = 128
"""The byte that stands for 0 in MatMulNBits, whose weights are unsigned."""
_TINY = 1e-10
"""The smallest magnitude that is divided by, so that a block of zeros has a scale."""
_ROWS_AT_ONCE = 8192
"""Rows of a table quantised at once, to bound the memory."""


def quantise_blocks(weight: FloatArray, block: int) -> tuple[ByteArray, FloatArray]:
    """Quantise a weight, with one scale for each block, in the layout of MatMulNBits.

    Args:
        weight: (rows, columns).
        block: Neighbouring weights of a row that share a scale: 16, 32, 64 or 128.

    Returns:
        Bytes uint8 (rows, blocks, block), with the last block of each row filled up with zeros; and
        scales float32 (rows, blocks). The weight is (bytes - 128) * scale.
    """
    # Zeros at the end of a row are multiplied with zeros, and change nothing.
    filling = -weight.shape[1] % block
    filled = np.pad(weight, ((0, 0), (0, filling)))
    blocks = filled.reshape(len(weight), -1, block)
    scales = np.maximum(np.abs(blocks).max(axis=2), _TINY) / _LARGEST
    values = np.rint(blocks / scales[..., None]) + _ZERO_POINT
    return values.astype(np.uint8), scales.astype(np.float32)


def quantise_rows(table: FloatArray) -> tuple[Int8Array, FloatArray]:
    """Quantise a table, with one scale for each row.

    Args:
        table: (rows, d).

    Returns:
        Values int8 (rows, d), and scales float32 (rows, 1). The table is values * scales.
    """
    scales = np.empty((len(table), 1), dtype=np.float32)
    values = np.empty(table.shape, dtype=np.int8)
    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        largest = np.abs(table[rows]).max(axis=1, keepdims=True)
        scales[rows] = np.maximum(largest, _TINY) / _LARGEST
        values[rows] = np.rint(table[rows] / scales[rows])
    return values, scales
