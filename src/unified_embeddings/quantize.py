"""An exported graph's products in int8, so that a text's vectors do not depend on its batch-mates.

What lives here: measuring activations on sample texts, and rewriting the graph. What does not:
writing the folder (`export`).

Weights get one scale a column. Activations get one scale a token, computed as they come: ONNX
Runtime's own dynamic quantisation has one for the whole batch, which makes a text's vectors depend
on the others. Before that, columns of activations that are large are divided, and the weights'
rows multiplied, by the same factors (SmoothQuant, Xiao et al. 2023, equation 4). The token table
gets one scale a row. Heads, attention and normalisation stay in fp32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from unified_embeddings.types import FloatArray

_ALPHA = 0.5
"""How much of the activations' spread is moved into the weights: SmoothQuant's middle way."""
_LARGEST = 127
_TINY = 1e-10
_BACKBONE = "/backbone"
_TABLE = "word_embeddings"

Inputs = Mapping[str, np.ndarray[Any, Any]]


def largest_activations(model: Path, batches: Iterable[Inputs]) -> dict[str, FloatArray]:
    """The largest magnitude in each column of what every product takes, over sample batches.

    Args:
        model: The fp32 graph.
        batches: Inputs of the graph; masked tokens do not count.

    Returns:
        Name of the activation → float32 (columns,).
    """
    graph = onnx.load(model)
    names = sorted({node.input[0] for node in _products(graph.graph)})
    del graph.graph.output[:]
    graph.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    largest: dict[str, FloatArray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        watched = Path(scratch) / "watched.onnx"
        _save(graph, watched)
        session = onnxruntime.InferenceSession(str(watched), providers=["CPUExecutionProvider"])
        for inputs in batches:
            real = inputs["attention_mask"].astype(bool)
            for name, values in zip(names, session.run(names, dict(inputs)), strict=True):
                here = np.abs(values[real]).max(axis=0)
                largest[name] = np.maximum(largest.get(name, here), here)
    return largest


def quantise(model: Path, target: Path, largest: Mapping[str, FloatArray]) -> None:
    """Rewrite a graph with its products and its token table in int8.

    Args:
        model: The fp32 graph.
        target: Where to; the weights go into a file beside it, its name with `.data`.
        largest: What `largest_activations` gave.
    """
    graph = onnx.load(model)
    rewriter = _Rewriter(graph.graph, largest)
    nodes = [made for node in graph.graph.node for made in rewriter.rewritten(node)]
    kept = [one for one in graph.graph.initializer if one.name not in rewriter.replaced]
    del graph.graph.node[:], graph.graph.initializer[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.extend([*kept, *rewriter.added])
    _save(graph, target)


class _Rewriter:
    """Turns a graph's nodes, in order, into those of the quantised graph."""

    def __init__(self, graph: Any, largest: Mapping[str, FloatArray]) -> None:
        self._weights = {one.name: one for one in graph.initializer}
        self._products = {node.name: node for node in _products(graph)}
        self._factors = self._smoothing(largest)
        self._quantised: dict[str, tuple[str, str]] = {}
        self.replaced: set[str] = set()
        self.added: list[Any] = []
        self._inverse = self._constant("int8_inverse", np.float32(1 / _LARGEST))
        self._tiny = self._constant("int8_tiny", np.float32(_TINY))

    def rewritten(self, node: Any) -> Iterator[Any]:
        """What stands for one node: itself, or several."""
        if node.name in self._products:
            yield from self._product(node)
        elif (
            node.op_type == "Gather" and _TABLE in node.input[0] and node.input[0] in self._weights
        ):
            yield from self._lookup(node)
        else:
            yield node

    def _smoothing(self, largest: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Factor of each column of each activation; products that share one share its factors."""
        rows: dict[str, FloatArray] = {}
        for node in self._products.values():
            here = np.abs(self._array(node.input[1])).max(axis=1)
            rows[node.input[0]] = np.maximum(rows.get(node.input[0], here), here)
        return {
            name: np.asarray(
                np.maximum(largest[name], 1e-5) ** _ALPHA
                / np.maximum(weights, 1e-5) ** (1 - _ALPHA),
                dtype=np.float32,
            )
            for name, weights in rows.items()
        }

    def _product(self, node: Any) -> Iterator[Any]:
        activation, weight = node.input
        if activation not in self._quantised:
            yield from self._activation(activation)
        values, scale = self._quantised[activation]
        smoothed = self._array(weight) * self._factors[activation][:, None]
        columns = np.maximum(np.abs(smoothed).max(axis=0), _TINY) / _LARGEST
        self.replaced.add(weight)
        quantised = self._constant(f"{weight}_int8", _rounded(smoothed / columns))
        per_column = self._constant(f"{weight}_scale", columns.astype(np.float32))
        stem = f"{node.output[0]}_int8"
        yield helper.make_node("MatMulInteger", [values, quantised], [f"{stem}_sum"])
        yield helper.make_node("Cast", [f"{stem}_sum"], [f"{stem}_float"], to=TensorProto.FLOAT)
        yield helper.make_node("Mul", [f"{stem}_float", scale], [f"{stem}_rows"])
        yield helper.make_node("Mul", [f"{stem}_rows", per_column], [node.output[0]])

    def _activation(self, name: str) -> Iterator[Any]:
        """Scale a token's row by its largest magnitude, once for all products that take it."""
        stem = f"{name}_int8"
        smooth = self._constant(f"{stem}_smooth", (1 / self._factors[name]).astype(np.float32))
        steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
            ("Mul", [name, smooth], "smoothed", {}),
            ("Abs", [f"{stem}_smoothed"], "magnitude", {}),
            ("ReduceMax", [f"{stem}_magnitude"], "largest", {"axes": [-1], "keepdims": 1}),
            ("Mul", [f"{stem}_largest", self._inverse], "unguarded", {}),
            ("Max", [f"{stem}_unguarded", self._tiny], "scale", {}),
            ("Div", [f"{stem}_smoothed", f"{stem}_scale"], "divided", {}),
            ("Round", [f"{stem}_divided"], "rounded", {}),
            ("Cast", [f"{stem}_rounded"], "values", {"to": TensorProto.INT8}),
        ]
        for kind, inputs, output, attributes in steps:
            yield helper.make_node(kind, inputs, [f"{stem}_{output}"], **attributes)
        self._quantised[name] = (f"{stem}_values", f"{stem}_scale")

    def _lookup(self, node: Any) -> Iterator[Any]:
        table = self._array(node.input[0])
        rows = np.maximum(np.abs(table).max(axis=1, keepdims=True), _TINY) / _LARGEST
        self.replaced.add(node.input[0])
        quantised = self._constant(f"{node.input[0]}_int8", _rounded(table / rows))
        scales = self._constant(f"{node.input[0]}_scale", rows.astype(np.float32))
        stem = f"{node.output[0]}_int8"
        yield helper.make_node("Gather", [quantised, node.input[1]], [f"{stem}_row"], axis=0)
        yield helper.make_node("Gather", [scales, node.input[1]], [f"{stem}_scale"], axis=0)
        yield helper.make_node("Cast", [f"{stem}_row"], [f"{stem}_float"], to=TensorProto.FLOAT)
        yield helper.make_node("Mul", [f"{stem}_float", f"{stem}_scale"], [node.output[0]])

    def _array(self, name: str) -> FloatArray:
        return np.asarray(numpy_helper.to_array(self._weights[name]), dtype=np.float32)

    def _constant(self, name: str, value: Any) -> str:
        self.added.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _products(graph: Any) -> list[Any]:
    """The backbone's products with a weight; those of the heads stay as they are."""
    weights = {one.name for one in graph.initializer}
    return [
        node
        for node in graph.node
        if node.op_type == "MatMul" and node.name.startswith(_BACKBONE) and node.input[1] in weights
    ]


def _rounded(values: FloatArray) -> np.ndarray[Any, np.dtype[np.int8]]:
    return np.clip(np.rint(values), -_LARGEST, _LARGEST).astype(np.int8)


def _save(graph: Any, path: Path) -> None:
    onnx.save_model(
        graph,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
    )
