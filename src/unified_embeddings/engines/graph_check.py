"""What an ONNX file asks for, read before ONNX Runtime is given it.

What lives here: a reader of just as much of the format as tells a graph written by `export` from
any other, and the refusal of any other. What does not: running graphs (`onnx`), writing them
(`export`).

A folder with a graph may come from anybody. ONNX Runtime would run a loop without an end, and a
graph can name operators that call other code or read other files. `export` writes few operators, so
those are all that is taken. The package onnx is not needed: running an export does without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_STANDARD = frozenset(
    (
        "Add", "And", "Cast", "Concat", "CumSum", "Div", "Equal", "Gather", "Greater", "If",
        "LayerNormalization", "MatMul", "Max", "Mul", "Neg", "NonZero", "Not", "QuantizeLinear",
        "ReduceMax", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Shape", "Size", "Slice", "Split",
        "Squeeze", "Sub", "Sum", "Transpose", "Unsqueeze", "Where",
    )
)  # fmt: skip
"""ONNX's operators that `export` uses."""
_FUSED = frozenset(
    (
        "BiasGelu", "FastGelu", "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention",
        "SkipLayerNormalization",
    )
)  # fmt: skip
"""ONNX Runtime's own operators that `export` uses."""
_OPERATORS = {"": _STANDARD, "ai.onnx": _STANDARD, "com.microsoft": _FUSED}
_MOST_CONCATENATIONS = 4
"""`export` writes one. A chain of them would double a tensor with every link."""
_MOST_BYTES = 64 * 2**20
"""Bytes of a graph without its weights; `export` writes less than one."""
_MOST_DEPTH = 4
"""Depth of branches within branches; `export` writes one."""

# Numbers of the fields, as onnx.proto has them.
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_SPARSE_TENSOR = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_TENSOR_EXTERNAL = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Field(NamedTuple):
    """One field of a message: its number, and its bytes if it has any."""

    number: int
    content: memoryview


def graph_problem(path: Path, weights_file: str) -> str | None:
    """Return what keeps a graph from being run; None if nothing does.

    Args:
        path: The ONNX file.
        weights_file: Name of the only other file that it may read.

    Raises:
        OSError: If it cannot be read.
    """
    if path.stat().st_size > _MOST_BYTES:
        return f"it has {path.stat().st_size:,} bytes without its weights"
    counts: Counter[str] = Counter()
    try:
        for field in _fields(memoryview(path.read_bytes())):
            if field.number in (_MODEL_TRAINING, _MODEL_FUNCTIONS):
                return "it defines functions of its own"
            if field.number == _MODEL_GRAPH:
                problem = _problem_in_graph(field.content, weights_file, counts, depth=0)
                if problem is not None:
                    return problem
    except (ValueError, IndexError) as error:
        return f"it is damaged ({error})"
    if counts["Concat"] > _MOST_CONCATENATIONS:
        return f"it has {counts['Concat']} concatenations"
    return None


def _problem_in_graph(
    graph: memoryview, weights_file: str, counts: Counter[str], depth: int
) -> str | None:
    if depth > _MOST_DEPTH:
        return "its branches are nested too deep"
    for field in _fields(graph):
        problem = None
        if field.number == _GRAPH_NODE:
            problem = _problem_in_node(field.content, weights_file, counts, depth)
        elif field.number == _GRAPH_TENSOR:
            problem = _problem_in_tensor(field.content, weights_file)
        elif field.number == _GRAPH_SPARSE_TENSOR:
            problem = "it has sparse tensors"
        if problem is not None:
            return problem
    return None


def _problem_in_node(
    node: memoryview, weights_file: str, counts: Counter[str], depth: int
) -> str | None:
    operator = domain = ""
    for field in _fields(node):
        problem = None
        if field.number == _NODE_OPERATOR:
            operator = _text(field)
        elif field.number == _NODE_DOMAIN:
            domain = _text(field)
        elif field.number == _NODE_ATTRIBUTE:
            problem = _problem_in_attribute(field.content, weights_file, counts, depth)
        if problem is not None:
            return problem
    counts[operator] += 1
    if operator not in _OPERATORS.get(domain, ()):
        name = f"{domain}.{operator}" if domain else operator
        return f"it has the operator {name!r:.80}, which no export of this package has"
    return None


def _problem_in_attribute(
    attribute: memoryview, weights_file: str, counts: Counter[str], depth: int
) -> str | None:
    for field in _fields(attribute):
        problem = None
        if field.number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
            problem = _problem_in_graph(field.content, weights_file, counts, depth + 1)
        elif field.number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            problem = _problem_in_tensor(field.content, weights_file)
        if problem is not None:
            return problem
    return None


def _problem_in_tensor(tensor: memoryview, weights_file: str) -> str | None:
    for field in _fields(tensor):
        if field.number != _TENSOR_EXTERNAL:
            continue
        entry = {part.number: _text(part) for part in _fields(field.content)}
        if entry.get(_ENTRY_KEY) == "location" and entry.get(_ENTRY_VALUE) != weights_file:
            return f"it reads the file {entry.get(_ENTRY_VALUE)!r:.80}, not {weights_file}"
    return None


# --- the wire format --------------------------------------------------------------------------


def _fields(message: memoryview) -> Iterator[_Field]:
    """Yield the fields of a message in Protocol Buffers' encoding.

    Raises:
        ValueError: If it is not one.
    """
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        length = 0
        if kind == _VARINT:
            _, position = _read_varint(message, position)
        elif kind == _BYTES:
            length, position = _read_varint(message, position)
        elif kind in (_FIXED32, _FIXED64):
            position += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of kind {kind}")
        if position + length > len(message):
            raise ValueError("a field beyond its end")
        yield _Field(number, message[position : position + length])
        position += length


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number of one to ten bytes, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than ten bytes")


def _text(field: _Field) -> str:
    return bytes(field.content).decode("utf-8")
