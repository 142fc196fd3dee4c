"""The parts of an ONNX graph that hold most of a model's weights: products, token table and heads.

What lives here: their nodes in fp32 and in int8. What does not: the arithmetic of int8
(`quantisation`), and how the parts are put together (`graph`).

In int8 both sides of a product are quantised: the weight when the graph is written, and what it is
multiplied with as it comes, with one scale for every block of a token (ONNX Runtime's MatMulNBits).
A token's result therefore depends on no other token.
"""

from __future__ import annotations

from typing import IO

from unified_embeddings.export.graph_writer import FLOAT, FUSED, GraphWriter
from unified_embeddings.export.quantisation import quantise_blocks, quantise_rows
from unified_embeddings.types import FloatArray

_INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy level at which activations are in int8 as well."""


class LayerWriter(GraphWriter):
    """A graph writer with what a model's layers are made of, in fp32 or in int8.

    Args:
        weights: The open file that large constants are written to.
        location: Name of that file.
        quantised: Whether products and the token table are in int8.
    """

    def __init__(self, weights: IO[bytes], location: str, *, quantised: bool) -> None:
        super().__init__(weights, location)
        self._quantised = quantised

    def add_token_table(self, token_ids: str, table: FloatArray, name: str) -> str:
        """Add the rows of the token table for token ids (T,): (T, d)."""
        if not self._quantised:
            constant = self.add_constant(f"{name}/table", table)
            return self.add_node("Gather", [constant, token_ids], name)
        values, scales = quantise_rows(table)
        values_name = self.add_constant(f"{name}/table", values)
        row = self.add_node("Gather", [values_name, token_ids], f"{name}/row")
        scales_name = self.add_constant(f"{name}/scales", scales)
        scale = self.add_node("Gather", [scales_name, token_ids], f"{name}/scale")
        real = self.add_node("Cast", [row], f"{name}/real", to=FLOAT)
        return self.add_node("Mul", [real, scale], name)

    def add_product(self, x: str, weight: FloatArray, name: str, block: int) -> str:
        """Add the product of x (T, columns) and a layer's weight (rows, columns): (T, rows).

        Args:
            x: Name of the left side.
            weight: The right side.
            name: Name of the result.
            block: Weights that share a scale in int8.
        """
        if not self._quantised:
            constant = self.add_constant(f"{name}/weight", weight.T)
            return self.add_node("MatMul", [x, constant], name)
        values, scales = quantise_blocks(weight, block)
        values_name = self.add_constant(f"{name}/weight", values)
        scales_name = self.add_constant(f"{name}/scales", scales)
        rows, columns = weight.shape
        return self.add_node(
            "MatMulNBits",
            [x, values_name, scales_name],
            name,
            FUSED,
            N=rows,
            K=columns,
            bits=8,
            block_size=block,
            accuracy_level=_INT8_ACTIVATIONS,
        )

    def add_head(self, hidden: str, weight: FloatArray, bias: FloatArray, name: str) -> str:
        """Add a head, which stays in fp32: hidden states (T, d) to (T, rows)."""
        weight_name = self.add_constant(f"{name}/weight", weight.T)
        product = self.add_node("MatMul", [hidden, weight_name], f"{name}/x")
        bias_name = self.add_constant(f"{name}/bias", bias)
        return self.add_node("Add", [product, bias_name], name)
