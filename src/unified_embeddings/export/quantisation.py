"""Weights in int8: the arithmetic, on arrays.

What lives here: scaling, rounding and rotating. What does not: the graph's nodes that take the
result (`layer_writer`).

A weight has one scale for each of its rows, and so has the token table. Before that, the columns of
a weight are rotated: a few columns of a model's states are much larger than the rest, and would
take the resolution from all others. A rotation spreads each of them over many columns. States and
weights are rotated alike, which leaves their product as it was, so nothing has to be measured on
sample texts beforehand (ADR 35).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.types import FloatArray

Int8Array: TypeAlias = NDArray[np.int8]

LARGEST = 127
"""The largest magnitude in int8 that has a counterpart of the other sign."""
TINY = 1e-10
"""The smallest magnitude that is divided by, so that a row of zeros has a scale."""
_ONE_STAGE = 128
"""Columns up to which a block is rotated by one matrix."""
_ROWS_AT_ONCE = 8192
"""Rows of a table quantised at once, to bound the memory."""


@dataclass(frozen=True)
class Rotation:
    """A rotation of columns, in blocks of neighbours.

    Attributes:
        sizes: Sizes of the Hadamard matrices. With two of them, a and b, a block is a grid of a
            rows and b columns, which are rotated one after the other: this mixes all a * b columns
            for the price of a + b.
    """

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, columns: int, largest: int | None = None) -> Rotation:
        """Return the widest rotation for so many columns.

        Args:
            columns: What has to be divided into blocks. Blocks have a power of two columns.
            largest: Columns of a block, at most.
        """
        block = columns & -columns
        if largest is not None:
            block = min(block, largest)
        if block <= _ONE_STAGE:
            return cls((block,))
        columns_of_grid = 1 << (block.bit_length() // 2)
        return cls((columns_of_grid, block // columns_of_grid))


def hadamard(size: int) -> FloatArray:
    """Return Sylvester's Hadamard matrix of a power of two, scaled to length 1; it is symmetric.

    Its entries are all of one magnitude, so each column of what is multiplied with it is spread
    evenly over all others.

    Returns:
        float32 (size, size).
    """
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / math.sqrt(size)).astype(np.float32)


def rotate(rows: FloatArray, rotation: Rotation) -> FloatArray:
    """Rotate the columns of rows (n, columns), as the graph rotates its states."""
    first_size = rotation.sizes[0]
    rotated = rows
    if len(rotation.sizes) > 1:
        second_size = rotation.sizes[1]
        rotated = hadamard(second_size) @ rows.reshape(-1, second_size, first_size)
    rotated = rotated.reshape(-1, first_size) @ hadamard(first_size)
    return rotated.reshape(rows.shape)


def quantise_rows(table: FloatArray) -> tuple[Int8Array, FloatArray]:
    """Quantise a weight or a table, with one scale for each row.

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
        scales[rows] = np.maximum(largest, TINY) / LARGEST
        values[rows] = np.rint(table[rows] / scales[rows])
    return values, scales
