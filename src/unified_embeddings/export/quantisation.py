"""Weights in int8: the arithmetic, on arrays.

What lives here: scaling, rounding and rotating. What does not: the graph's nodes that take the
result (`layer_writer`).

A weight has one scale for each of its rows, and so has the token table. Before that, the columns of
a weight are rotated: a few columns of a model's states are much larger than the rest, and would
take the resolution from all others. A rotation spreads each of them over many columns. States and
weights are rotated alike, which leaves their product as it was. Weights are then rounded so that
their errors cancel for inputs that go together (ADR 35).
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
_COLUMNS_TOGETHER = 512
"""Columns of a weight that make up for each other's errors; more would take longer to prepare."""
_COLUMNS_AT_ONCE = 128
"""Columns that are rounded before the others are told of their errors; for speed alone."""
_DAMPING = 0.1
"""What is added to the variance of each input, as a share of their mean: it keeps chance
similarities of few examples from mattering."""
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


class ErrorFeedback:
    """Quantises weights for what they will be multiplied with.

    A weight's columns are rounded one after the other. What a column loses is made up for by the
    columns behind it, as far as their inputs go together. Each value is thus up to a few steps from
    its own, while the product is closer to what it was. If no inputs go together, every value is
    rounded to the nearest. The method is GPTQ's (Frantar et al., 2022).

    Args:
        inputs: An example of what weights are multiplied with, (n, columns).
    """

    def __init__(self, inputs: FloatArray) -> None:
        columns = inputs.shape[1]
        self._spans = [
            slice(start, min(start + _COLUMNS_TOGETHER, columns))
            for start in range(0, columns, _COLUMNS_TOGETHER)
        ]
        self._factors = [_feedback_factor(inputs[:, span]) for span in self._spans]

    def quantise(self, weight: FloatArray) -> tuple[Int8Array, FloatArray]:
        """Quantise a weight, with one scale for each row.

        Args:
            weight: (rows, columns).

        Returns:
            Values int8 (rows, columns), and scales float32 (rows, 1). The weight is about
            values * scales.
        """
        scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True), TINY) / LARGEST
        values = np.empty(weight.shape, dtype=np.int8)
        for span, factor in zip(self._spans, self._factors, strict=True):
            steps = np.ascontiguousarray((weight[:, span] / scales).T)
            values[:, span] = _round_in_turn(steps, factor).T
        return values, scales


def _feedback_factor(inputs: FloatArray) -> FloatArray:
    """Return how much of a column's error each later column makes up for, (columns, columns).

    It is the upper Cholesky factor of the inverse of the inputs' second moments, float32.
    """
    moments = inputs.T @ inputs / np.float32(len(inputs))
    diagonal = np.einsum("ii->i", moments)
    diagonal += max(_DAMPING * diagonal.mean(), TINY)
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(moments)).T)


def _round_in_turn(steps: FloatArray, factor: FloatArray) -> FloatArray:
    """Round a weight's columns in turn, each with what the ones before it lost.

    Args:
        steps: The weight in steps, one row for each of its columns: (columns, rows). It is used up.
        factor: See `_feedback_factor`.

    Returns:
        Whole numbers, (columns, rows).
    """
    rounded = np.empty_like(steps)
    for start in range(0, len(steps), _COLUMNS_AT_ONCE):
        near = slice(start, start + _COLUMNS_AT_ONCE)
        errors = np.empty_like(steps[near])
        for row in range(len(errors)):
            column = start + row
            rounded[column] = np.clip(np.rint(steps[column]), -LARGEST, LARGEST)
            errors[row] = (steps[column] - rounded[column]) / factor[column, column]
            # Columns close by need it at once; those further on get the errors of all at once.
            later = slice(column + 1, start + len(errors))
            steps[later] -= np.outer(factor[column, later], errors[row])
        further = slice(start + len(errors), None)
        steps[further] -= factor[near, further].T @ errors
    return rounded


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
