"""An ONNX graph as it grows, node by node, with its weights in a file next to it.

What lives here: all use of the package onnx. What does not: which nodes make a model (`graph`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.errors import MissingExtraError

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise MissingExtraError("The package onnx, which writes ONNX files,", extra="onnx") from error

Array: TypeAlias = NDArray[np.generic]
Node: TypeAlias = onnx.NodeProto

FLOAT = TensorProto.FLOAT
INT32 = TensorProto.INT32
INT64 = TensorProto.INT64

FUSED = "com.microsoft"
"""Domain of ONNX Runtime's own operators, which do the work of several of the standard's."""

_OPSET = 17
_IR_VERSION = 8
_PAGE = 4096
"""Weights begin at multiples of this offset, so that each can be mapped from the file alone."""
_INLINE_BYTES = 1024
"""Constants up to this size are stored in the graph itself."""


class GraphWriter:
    """Collects the nodes and constants of a graph.

    Nodes and constants are named by their outputs: the methods that add one return its name, for
    the inputs of others.

    Args:
        weights: The open file that large constants are written to.
        location: Name of that file.
    """

    def __init__(self, weights: IO[bytes], location: str) -> None:
        self._weights = weights
        self._location = location
        self._nodes: list[Node] = []
        self._constants: list[onnx.TensorProto] = []
        self._shared_names: set[str] = set()
        self._options: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def add_node(
        self,
        operator: str,
        inputs: Sequence[str],
        name: str,
        domain: str = "",
        **attributes: float | Sequence[int] | onnx.GraphProto,
    ) -> str:
        """Add a node whose only output has the node's name; returns that name."""
        node = helper.make_node(operator, inputs, [name], name=name, domain=domain)
        for key, value in sorted(attributes.items()):
            node.attribute.append(helper.make_attribute(key, value))
        self._nodes.append(node)
        return name

    def add_split(self, tensor: str, names: Sequence[str]) -> None:
        """Add a node that splits a tensor's last axis into equal parts of these names."""
        node = helper.make_node("Split", [tensor], names, name=f"{tensor}/split", axis=-1)
        self._nodes.append(node)

    def add_constant(self, name: str, value: Array | np.generic) -> str:
        """Add a constant; a large one goes into the file of weights. Returns its name."""
        array = np.ascontiguousarray(value)
        if array.nbytes <= _INLINE_BYTES:
            # Not `array`: making a scalar contiguous would give it an axis.
            self._constants.append(numpy_helper.from_array(np.asarray(value), name))
            return name
        padding = -self._weights.tell() % _PAGE
        self._weights.write(b"\0" * padding)
        constant = onnx.TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        constant.external_data.add(key="location", value=self._location)
        constant.external_data.add(key="offset", value=str(self._weights.tell()))
        constant.external_data.add(key="length", value=str(array.nbytes))
        self._weights.write(array.data)
        self._constants.append(constant)
        return name

    def add_shared_constant(self, name: str, value: Array | np.generic) -> str:
        """Add a constant that several parts of the graph use, unless it is there; see above."""
        if name not in self._shared_names:
            self._shared_names.add(name)
            self.add_constant(name, value)
        return name

    def add_option(self, name: str, default: np.generic) -> str:
        """Add a scalar that whoever runs the graph may set; returns its name."""
        constant = numpy_helper.from_array(np.asarray(default), name)
        self._constants.append(constant)
        self._options.append(helper.make_tensor_value_info(name, constant.data_type, []))
        return name

    def add_output(self, name: str, shape: Sequence[str | int]) -> None:
        """Make a node's output, float32, one of the graph's."""
        self._outputs.append(helper.make_tensor_value_info(name, FLOAT, shape))

    @contextlib.contextmanager
    def branch(self) -> Iterator[list[Node]]:
        """Collect nodes that are added inside this context for a branch of a condition.

        They go into the list that is yielded, and not into the graph.
        """
        outer_nodes = self._nodes
        self._nodes = []
        try:
            yield self._nodes
        finally:
            self._nodes = outer_nodes

    def add_condition(
        self, condition: str, then_nodes: list[Node], else_nodes: list[Node], name: str, stem: str
    ) -> str:
        """Add a node that runs one of two branches; returns its name.

        Args:
            condition: A boolean scalar.
            then_nodes: Nodes of the branch for true; one of them is named "{stem}/then".
            else_nodes: Nodes of the branch for false; one of them is named "{stem}/else".
            name: Name of the node, whose output is that of the named node in the branch that runs.
            stem: Start of the branches' names.
        """
        then_branch = _make_branch(then_nodes, f"{stem}/then")
        else_branch = _make_branch(else_nodes, f"{stem}/else")
        return self.add_node(
            "If", [condition], name, then_branch=then_branch, else_branch=else_branch
        )

    def save(self, path: Path, inputs: Sequence[str]) -> None:
        """Write the graph, whose inputs are int64 (texts, tokens).

        Raises:
            OSError: If the file cannot be written.
        """
        # A constant that is an input as well is the input's default.
        texts = [helper.make_tensor_value_info(name, INT64, ["texts", "tokens"]) for name in inputs]
        graph = helper.make_graph(
            self._nodes,
            "embeddings",
            [*texts, *self._options],
            self._outputs,
            self._constants,
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(FUSED, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="unified-embeddings")
        model.ir_version = _IR_VERSION
        onnx.save_model(model, path)


def _make_branch(nodes: list[Node], name: str) -> onnx.GraphProto:
    """Return a branch whose name is also that of its output."""
    output = helper.make_tensor_value_info(name, FLOAT, None)
    return helper.make_graph(nodes, name, [], [output])
