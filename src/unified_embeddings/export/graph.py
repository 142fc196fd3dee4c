"""A model as an ONNX graph with all its heads, written node by node.

What lives here: the graph, and its weights in fp32 or int8. What does not: the folder it is written
into (`export`), running it (`engines.onnx`).

Texts come padded, as any ONNX runtime's user hands them over. Within, the tokens stand packed, T
rows without padding; only attention sees the padded form, and where nothing is padded it takes the
kernel that holds no scores.

int8: the weights of the layers' products get one scale for every block of them, and what they are
multiplied with is quantised as it comes, one scale for every block of a token (ONNX Runtime's
MatMulNBits). So a token's result depends on no other token, and a large value spoils its own block
only: nothing has to be measured on sample texts beforehand (ADR 16). The token table gets one scale
a row. Normalisation, attention and heads stay in fp32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from unified_embeddings.errors import MissingExtraError
from unified_embeddings.models.exported import INPUTS, OUTPUTS
from unified_embeddings.models.weights import PLACES, TABLE, TYPES, Backbone
from unified_embeddings.system.progress import progress_bar
from unified_embeddings.types import FloatArray

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise MissingExtraError("The package onnx, which writes ONNX files,", extra="onnx") from error

FINE, COARSE = 16, 64
"""Weights that share a scale: in products of normalised states, whose few large columns reach the
sparse head, and in the others; chosen for exactness within 0.6 GB (ADR 16)."""
_LARGEST = 127
_ZERO = 128
"""What MatMulNBits takes for 0 in bytes without sign."""
_TINY = 1e-10
_OPSET = 17
_FUSED = "com.microsoft"
"""ONNX Runtime's own operators."""
_IR_VERSION = 8
_PAGE = 4096
"""Weights begin at multiples of it, so that each can be mapped from the file alone."""
_ROWS = 8192
"""Rows of the token table quantised at once."""
_SMALL = 1024
"""Bytes up to which a constant stands in the graph itself."""

Linear = tuple[FloatArray, FloatArray]
"""Weight (rows, columns) and bias (rows,)."""


@dataclass(frozen=True)
class Model:
    """What is written.

    Attributes:
        backbone: The layers.
        pooling: "cls" or "mean".
        padding: Id that the backbone's position numbers start after; None if they start at 0.
        sparse: The sparse head (1, d), if it has one.
        colbert: The ColBERT head, if it has one.
    """

    backbone: Backbone
    pooling: str
    padding: int | None
    sparse: Linear | None
    colbert: Linear | None


def write_graph(model: Model, path: Path, *, quantised: bool, show_progress: bool = False) -> None:
    """Write the graph, and its weights into a file beside it, named with `.data` after it.

    Memory: one tensor at a time.

    Args:
        model: What to write.
        path: Where to.
        quantised: Whether products and token table are written in int8.
        show_progress: Draw a progress bar on standard error.

    Raises:
        OSError: If a file cannot be written.
    """
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as weights:
        writer = _Writer(weights, data.name, quantised=quantised)
        with progress_bar("Writing layers", model.backbone.layers, shown=show_progress) as advance:
            for _ in _written(writer, model):
                advance(1)
    graph = helper.make_graph(
        writer.nodes,
        "embeddings",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["texts", "tokens"]) for n in INPUTS],
        writer.outputs,
        writer.constants,
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_FUSED, 1)]
    made = helper.make_model(graph, opset_imports=opsets, producer_name="unified-embeddings")
    made.ir_version = _IR_VERSION
    onnx.save_model(made, path)


class _Writer:
    """Nodes and constants of a graph as it grows."""

    def __init__(self, weights: IO[bytes], location: str, *, quantised: bool) -> None:
        self._weights, self._location, self._quantised = weights, location, quantised
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.outputs: list[Any] = []

    def node(
        self, kind: str, inputs: Sequence[str], name: str, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node with one output, which has its name."""
        self.nodes.append(
            helper.make_node(kind, inputs, [name], name=name, domain=domain, **attributes)
        )
        return name

    def constant(self, name: str, value: Any) -> str:
        """Add a constant; a large one goes into the file of weights."""
        array = np.ascontiguousarray(value)
        if array.nbytes <= _SMALL:
            self.constants.append(numpy_helper.from_array(np.asarray(value), name))
            return name
        self._weights.write(b"\0" * (-self._weights.tell() % _PAGE))
        entries = {
            "location": self._location, "offset": self._weights.tell(), "length": array.nbytes
        }  # fmt: skip
        tensor = onnx.TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, entry in entries.items():
            tensor.external_data.add(key=key, value=str(entry))
        self._weights.write(array.data)
        self.constants.append(tensor)
        return name

    def output(self, name: str, shape: Sequence[str | int]) -> None:
        """Make a node's output one of the graph's."""
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def table(self, ids: str, table: FloatArray, name: str) -> str:
        """Rows of the token table, (T, d)."""
        if not self._quantised:
            return self.node("Gather", [self.constant(f"{name}/table", table), ids], name)
        scales = np.empty((len(table), 1), dtype=np.float32)
        values = np.empty(table.shape, dtype=np.int8)
        for start in range(0, len(table), _ROWS):
            part, span = table[start : start + _ROWS], slice(start, start + _ROWS)
            scales[span] = np.maximum(np.abs(part).max(axis=1, keepdims=True), _TINY) / _LARGEST
            values[span] = np.rint(part / scales[span])
        rows = self.constant(f"{name}/table", values)
        row = self.node("Gather", [rows, ids], f"{name}/row")
        scale = self.node("Gather", [self.constant(f"{name}/scales", scales), ids], f"{name}/scale")
        real = self.node("Cast", [row], f"{name}/real", to=TensorProto.FLOAT)
        return self.node("Mul", [real, scale], name)

    def product(self, x: str, weight: FloatArray, name: str, block: int) -> str:
        """X (T, columns) times a weight (rows, columns) of a layer: (T, rows)."""
        if not self._quantised:
            return self.node("MatMul", [x, self.constant(f"{name}/weight", weight.T)], name)
        blocks, scales = quantised(weight, block)
        inputs = [x, self.constant(f"{name}/weight", blocks)]
        inputs += [self.constant(f"{name}/scales", scales)]
        rows, columns = weight.shape
        return self.node(
            "MatMulNBits", inputs, name, _FUSED, N=rows, K=columns, bits=8, block_size=block,
            accuracy_level=4,  # activations in int8 as well
        )  # fmt: skip

    def linear(self, x: str, layer: Linear, name: str) -> str:
        """A head, in fp32."""
        weight, bias = layer
        product = self.node("MatMul", [x, self.constant(f"{name}/weight", weight.T)], f"{name}/x")
        return self.node("Add", [product, self.constant(f"{name}/bias", bias)], name)

    @contextlib.contextmanager
    def branch(self) -> Iterator[list[Any]]:
        """Within, nodes are added to the list and not to the graph: a branch of an If."""
        outer, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = outer


def quantised(
    weight: FloatArray, block: int
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], FloatArray]:
    """A weight in int8, as MatMulNBits takes it.

    Args:
        weight: (rows, columns).
        block: Weights of a row that share a scale: 16, 32, 64 or 128.

    Returns:
        Bytes (rows, blocks, block), 128 for 0, the last block filled up with it; and the scale of
        each block, float32 (rows, blocks). The weight is (bytes - 128) * scale.
    """
    filled = np.pad(weight, ((0, 0), (0, -weight.shape[1] % block)))
    blocks = filled.reshape(len(weight), -1, block)
    scales = np.maximum(np.abs(blocks).max(axis=2), _TINY) / _LARGEST
    whole = np.rint(blocks / scales[..., None]) + _ZERO
    return whole.astype(np.uint8), scales.astype(np.float32)


def _written(writer: _Writer, model: Model) -> Iterator[None]:
    """Write everything; yields after each layer."""
    hidden = _embeddings(writer, model)
    model.backbone.give_back("embeddings.")
    for number in range(model.backbone.layers):
        hidden = _layer(writer, model.backbone, number, hidden)
        model.backbone.give_back(f"encoder.layer.{number}.")
        yield
    _outputs(writer, model, hidden)


def _embeddings(writer: _Writer, model: Model) -> str:
    """From the inputs to the first hidden states; and what the rest needs to know of the padding.

    rows (T,): where each token stands among all places, padding included. slots (texts, tokens):
    which token stands in each place; another text's in one that is padding.
    """
    node, constant, backbone = writer.node, writer.constant, model.backbone
    ids, mask = INPUTS
    zero, one = constant("zero", np.int64(0)), constant("one", np.int64(1))
    last = constant("last axis", np.int64(-1))
    flat = constant("flat", np.array([-1], dtype=np.int64))
    first_axis = constant("first axis", np.array([0], dtype=np.int64))
    flat_mask = node("Reshape", [mask, flat], "flat_mask")
    node("Squeeze", [node("NonZero", [flat_mask], "real"), first_axis], "rows")
    count = node("CumSum", [flat_mask, zero], "count")
    slot = node("Max", [node("Sub", [count, one], "packed"), zero], "slot")
    node("Shape", [ids], "padded_shape")
    node("Reshape", [slot, "padded_shape"], "slots")
    lengths = node("ReduceSum", [mask, constant("tokens axis", np.array([1]))], "sums", keepdims=0)
    node("Cast", [lengths], "lengths", to=TensorProto.INT32)
    whole = node("Size", [flat_mask], "places")
    tokens = node("Size", ["rows"], "tokens")
    node("Equal", [whole, tokens], "is_unpadded")
    node("Concat", ["padded_shape", flat], "padded_states", axis=0)
    constant("packed_states", np.array([-1, backbone.width], dtype=np.int64))

    flat_ids = node("Reshape", [ids, flat], "flat_ids")
    packed_ids = node("Gather", [flat_ids, "rows"], "packed_ids")
    if model.padding is None:
        numbers = node("Sub", [node("CumSum", [mask, last], "numbers"), one], "positions")
    else:  # a literal padding token in a text is not counted, and stands at padding's position
        padding = constant("padding", np.int64(model.padding))
        is_pad = node("Equal", [ids, padding], "is_pad")
        known = node("Cast", [node("Not", [is_pad], "is_known")], "known", to=TensorProto.INT64)
        counted = node("Mul", [node("CumSum", [known, last], "numbers"), known], "counted")
        numbers = node("Add", [counted, padding], "positions")
    flat_numbers = node("Reshape", [numbers, flat], "flat_positions")
    packed_numbers = node("Gather", [flat_numbers, "rows"], "packed_positions")

    words = writer.table(packed_ids, _array(backbone, TABLE), "embeddings/words")
    places = _array(backbone, PLACES) + _array(backbone, TYPES)[0]
    table = constant("embeddings/positions/table", places)
    place = node("Gather", [table, packed_numbers], "embeddings/positions")
    return _norm(writer, backbone, words, place, "embeddings.LayerNorm", "embeddings/norm")


def _layer(writer: _Writer, backbone: Backbone, number: int, hidden: str) -> str:
    node, constant = writer.node, writer.constant
    stem, name = f"encoder.layer.{number}.", f"layer.{number}"

    weight, bias = _linear(
        backbone, *(f"{stem}attention.self.{part}" for part in ("query", "key", "value"))
    )
    product = writer.product(hidden, weight, f"{name}/attention/inputs/x", FINE)
    inputs = [product, constant(f"{name}/attention/inputs/bias", bias)]
    split = node("Add", inputs, f"{name}/attention/inputs")
    parts = [f"{name}/attention/{part}" for part in ("query", "key", "value")]
    writer.nodes.append(helper.make_node("Split", [split], parts, name=f"{split}/split", axis=-1))
    context = _attention(writer, parts, backbone.heads, f"{name}/attention")

    weight, bias = _linear(backbone, f"{stem}attention.output.dense")
    product = writer.product(context, weight, f"{name}/attention/output", COARSE)
    hidden = _norm(
        writer, backbone, product, hidden, f"{stem}attention.output.LayerNorm",
        f"{name}/attention/norm", bias,
    )  # fmt: skip

    weight, bias = _linear(backbone, f"{stem}intermediate.dense")
    product = writer.product(hidden, weight, f"{name}/wide", FINE)
    activated = _activated(writer, product, bias, backbone.activation, f"{name}/wide")
    weight, bias = _linear(backbone, f"{stem}output.dense")
    product = writer.product(activated, weight, f"{name}/narrow", COARSE)
    return _norm(writer, backbone, product, hidden, f"{stem}output.LayerNorm", f"{name}/norm", bias)


def _attention(writer: _Writer, parts: list[str], heads: int, name: str) -> str:
    """Attention within each text, packed (T, d) in and out.

    With padding, tokens are spread over (texts, tokens, d) and padding is masked, which takes a
    kernel that holds all scores; without, the other kernel holds none, so that a text of 8,192
    tokens needs no 4 GB.
    """
    node = writer.node
    with writer.branch() as unpadded:
        spread = [node("Reshape", [part, "padded_states"], f"{part}/texts") for part in parts]
        found = node("MultiHeadAttention", spread, f"{name}/whole", _FUSED, num_heads=heads)
        node("Reshape", [found, "packed_states"], f"{name}/then")
    with writer.branch() as padded:
        spread = [node("Gather", [part, "slots"], f"{part}/spread") for part in parts]
        masked = [*spread, "", "lengths"]
        found = node("MultiHeadAttention", masked, f"{name}/masked", _FUSED, num_heads=heads)
        places = node("Reshape", [found, "packed_states"], f"{name}/places")
        node("Gather", [places, "rows"], f"{name}/else")
    branches = {
        f"{way}_branch": helper.make_graph(
            nodes,
            f"{name}/{way}",
            [],
            [helper.make_tensor_value_info(f"{name}/{way}", TensorProto.FLOAT, None)],
        )
        for way, nodes in (("then", unpadded), ("else", padded))
    }
    return node("If", ["is_unpadded"], f"{name}/context", **branches)


def _activated(writer: _Writer, x: str, bias: FloatArray, kind: str, name: str) -> str:
    constant = writer.constant(f"{name}/bias", bias)
    if kind == "relu":
        return writer.node(
            "Relu", [writer.node("Add", [x, constant], f"{name}/sum")], f"{name}/relu"
        )
    fused = {"gelu": "BiasGelu", "gelu_tanh": "FastGelu"}[kind]
    return writer.node(fused, [x, constant], f"{name}/gelu", _FUSED)


def _norm(
    writer: _Writer,
    backbone: Backbone,
    x: str,
    plus: str,
    tensor: str,
    name: str,
    bias: FloatArray | None = None,
) -> str:
    """Normalise the sum of a product, its bias and what stood before it."""
    inputs = [x, plus]
    inputs += [
        writer.constant(f"{name}/{part}", _array(backbone, f"{tensor}.{part}"))
        for part in ("weight", "bias")
    ]
    if bias is not None:
        inputs.append(writer.constant(f"{name}/before", bias))
    return writer.node("SkipLayerNormalization", inputs, name, _FUSED, epsilon=backbone.epsilon)


def _outputs(writer: _Writer, model: Model, hidden: str) -> None:
    """From the last hidden states (T, d) to what each head gives, padded again."""
    node, constant = writer.node, writer.constant
    width = model.backbone.width
    if model.pooling == "cls":
        zero = constant("first token", np.int64(0))
        firsts = node("Gather", ["slots", zero], "firsts", axis=1)
        node("Gather", [hidden, firsts], OUTPUTS["dense"])
    else:
        spread = node("Gather", [hidden, "slots"], "spread")
        kept = node("Cast", [INPUTS[1]], "kept", to=TensorProto.FLOAT)
        kept = node("Unsqueeze", [kept, constant("states axis", np.array([2]))], "kept_states")
        axis = constant("pooled axis", np.array([1]))
        sums = node("ReduceSum", [node("Mul", [spread, kept], "real_states"), axis], "state_sums",
                    keepdims=0)  # fmt: skip
        counts = node("ReduceSum", [kept, axis], "counts", keepdims=0)
        node("Div", [sums, counts], OUTPUTS["dense"])
    writer.output(OUTPUTS["dense"], ["texts", width])
    if model.sparse is not None:
        weights = writer.linear(hidden, model.sparse, "sparse")
        weights = node("Relu", [weights], "sparse/relu")
        flat = node("Reshape", [weights, "flat"], "sparse/flat")
        node("Gather", [flat, "slots"], OUTPUTS["sparse"])
        writer.output(OUTPUTS["sparse"], ["texts", "tokens"])
    if model.colbert is not None:
        vectors = writer.linear(hidden, model.colbert, "colbert")
        bounds = [constant(f"colbert/{n}", np.array([v])) for n, v in (
            ("from", 1), ("to", np.iinfo(np.int64).max), ("axis", 1))]  # fmt: skip
        later = node("Slice", ["slots", *bounds], "colbert/slots")
        node("Gather", [vectors, later], OUTPUTS["colbert"])
        writer.output(OUTPUTS["colbert"], ["texts", "tokens_but_first", len(model.colbert[1])])


def _array(backbone: Backbone, name: str) -> FloatArray:
    return np.asarray(backbone.tensors[name].float().numpy())


def _linear(backbone: Backbone, *names: str) -> Linear:
    weight, bias = backbone.linear(*names)
    return weight.float().numpy(), bias.float().numpy()
