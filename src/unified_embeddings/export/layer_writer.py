"""The parts of an ONNX graph that hold most of a model's weights: products, token table and heads.

What lives here: their nodes in fp32 and in int8. What does not: the arithmetic of int8
(`quantisation`), and how the parts are put together (`graph`).

In int8 both sides of a product are rotated and quantised: the weight when the graph is written, and
what it is multiplied with as it comes, with one scale for every token. A token's result therefore
depends on no other token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

import numpy as np

from unified_embeddings.export.graph_writer import FLOAT, FUSED, GraphWriter
from unified_embeddings.export.quantisation import (
    LARGEST,
    TINY,
    ErrorFeedback,
    Int8Array,
    Rotation,
    hadamard,
    quantise_rows,
    rotate,
)
from unified_embeddings.types import FloatArray

_ZERO_BYTE = np.uint8(128)
"""The byte that stands for 0 in a token's values. The kernels that processors have one instruction
for multiply unsigned bytes by signed weights."""


class LayerWriter(GraphWriter):
    """A graph writer with what a model's layers are made of, in fp32 or in int8.

    Args:
        weights: The open file that large constants are written to.
        location: Name of that file.
        quantised: Whether products and the token table are in int8.
    """

    def __init__(self, weights: IO[bytes], location: str, *, quantised: bool) -> None:
        super().__init__(weights, location)
        self.quantised = quantised
        self._zero_bytes: str | None = None

    def add_token_table(self, token_ids: str, table: FloatArray, name: str) -> str:
        """Add the rows of the token table for token ids (T,): (T, d)."""
        if not self.quantised:
            constant = self.add_constant(f"{name}/table", table)
            return self.add_node("Gather", [constant, token_ids], name)
        values, scales = quantise_rows(table)
        values_name = self.add_constant(f"{name}/table", values)
        row = self.add_node("Gather", [values_name, token_ids], f"{name}/row")
        scales_name = self.add_constant(f"{name}/scales", scales)
        scale = self.add_node("Gather", [scales_name, token_ids], f"{name}/scale")
        real = self.add_node("Cast", [row], f"{name}/real", to=FLOAT)
        return self.add_node("Mul", [real, scale], name)

    def add_product(
        self,
        x: str,
        weight: FloatArray,
        name: str,
        rotation: Rotation | None,
        example: FloatArray | None,
    ) -> str:
        """Add the product of x (T, columns) and a layer's weight (rows, columns): (T, rows).

        Args:
            x: Name of the left side.
            weight: The right side.
            name: Name of the result.
            rotation: What both sides are rotated by in int8 before they are rounded; None if they
                are rotated already.
            example: What x may be, (n, columns), by which the weight is rounded in int8; None in
                fp32.
        """
        return self.add_products(x, {name: weight}, name, rotation, example)[0]

    def add_products(
        self,
        x: str,
        weights: Mapping[str, FloatArray],
        stem: str,
        rotation: Rotation | None,
        example: FloatArray | None,
    ) -> list[str]:
        """Add products of x (T, columns) and several weights, for which it is rounded once.

        Args:
            x: Name of the left side.
            weights: Name of a result → right side (rows, columns).
            stem: Start of the names of what the products share.
            rotation: See `add_product`.
            example: See `add_product`.
        """
        if example is None:
            names = [self.add_constant(f"{name}/weight", w.T) for name, w in weights.items()]
            pairs = zip(weights, names, strict=True)
            return [self.add_node("MatMul", [x, constant], name) for name, constant in pairs]
        if rotation is not None:
            columns = next(iter(weights.values())).shape[1]
            x = self._add_rotation(x, columns, stem, rotation)
            weights = {name: rotate(weight, rotation) for name, weight in weights.items()}
            example = rotate(example, rotation)
        rounded, steps = self._add_rounding(x, stem)
        feedback = ErrorFeedback(example)
        return [
            self._add_rounded_product(rounded, steps, *feedback.quantise(weight), name)
            for name, weight in weights.items()
        ]

    def _add_rounded_product(
        self, rounded: str, steps: str, values: Int8Array, scales: FloatArray, name: str
    ) -> str:
        """Add the product of bytes (T, columns), which stand for steps (T, 1), and a weight."""
        values_name = self.add_constant(f"{name}/weight", values.T)
        scales_name = self.add_constant(f"{name}/scales", scales.reshape(-1))
        unit = self.add_shared_constant("int8/unit", np.float32(1))
        zero = self.add_shared_constant("int8/zero", _ZERO_BYTE)
        inputs = [rounded, values_name, unit, scales_name, zero]
        product = self.add_node("MatMulIntegerToFloat", inputs, f"{name}/unscaled", FUSED)
        return self.add_node("Mul", [product, steps], name)

    def _add_rounding(self, x: str, name: str) -> tuple[str, str]:
        """Add x (T, columns) in bytes, and what a step of them stands for in each row, (T, 1)."""
        largest = self.add_node("ReduceMax", [x], f"{name}/largest", axes=[1], keepdims=1)
        smallest = self.add_node("ReduceMin", [x], f"{name}/smallest", axes=[1], keepdims=1)
        negated = self.add_node("Neg", [smallest], f"{name}/negated")
        tiny = self.add_shared_constant("int8/tiny", np.float32(TINY))
        reach = self.add_node("Max", [largest, negated, tiny], f"{name}/reach")
        fraction = self.add_shared_constant("int8/fraction", np.float32(1 / LARGEST))
        steps = self.add_node("Mul", [reach, fraction], f"{name}/steps")
        flat = self.add_shared_constant("int8/flat", np.array([-1]))
        row_steps = self.add_node("Reshape", [steps, flat], f"{name}/row_steps")
        if self._zero_bytes is None:
            # The same in all rows of all products, so the first product's serve for all.
            zero = self.add_shared_constant("int8/zero", _ZERO_BYTE)
            is_row = self.add_node("Equal", [row_steps, row_steps], "int8/is_row")
            self._zero_bytes = self.add_node("Where", [is_row, zero, zero], "int8/zeros")
        inputs = [x, row_steps, self._zero_bytes]
        return self.add_node("QuantizeLinear", inputs, f"{name}/bytes", axis=0), steps

    def _add_rotation(self, x: str, columns: int, name: str, rotation: Rotation) -> str:
        """Add the rotation of x (T, columns); see `quantisation.rotate`."""
        first_size = rotation.sizes[0]
        if first_size == 1:
            return x
        if len(rotation.sizes) > 1:
            # From the left, which takes less time than turning the grid.
            second_size = rotation.sizes[1]
            grid = self._add_shape(-1, second_size, first_size)
            grids = self.add_node("Reshape", [x, grid], f"{name}/grids")
            x = self.add_node("MatMul", [self._add_hadamard(second_size), grids], f"{name}/mixed")
        blocks = self.add_node("Reshape", [x, self._add_shape(-1, first_size)], f"{name}/blocks")
        matrix = self._add_hadamard(first_size)
        rotated = self.add_node("MatMul", [blocks, matrix], f"{name}/rotated")
        return self.add_node("Reshape", [rotated, self._add_shape(-1, columns)], f"{name}/spread")

    def _add_hadamard(self, size: int) -> str:
        return self.add_shared_constant(f"int8/hadamard/{size}", hadamard(size))

    def _add_shape(self, *sizes: int) -> str:
        name = f"int8/shape/{'x'.join(map(str, sizes))}"
        return self.add_shared_constant(name, np.array(sizes, dtype=np.int64))

    def add_head(self, hidden: str, weight: FloatArray, bias: FloatArray, name: str) -> str:
        """Add a head, which stays in fp32: hidden states (T, d) to (T, rows)."""
        weight_name = self.add_constant(f"{name}/weight", weight.T)
        product = self.add_node("MatMul", [hidden, weight_name], f"{name}/x")
        bias_name = self.add_constant(f"{name}/bias", bias)
        return self.add_node("Add", [product, bias_name], name)
