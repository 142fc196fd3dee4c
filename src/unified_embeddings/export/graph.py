"""A model as an ONNX graph with all its heads.

What lives here: which nodes make a model, with its weights in fp32 or int8. What does not: how
nodes are written (`graph_writer`, `layer_writer`), the folder that the graph is written into
(`folder`), and running it (`engines.onnx`).

Texts come padded, as the users of any ONNX runtime pass them. Inside the graph the tokens are
packed, T rows without padding. Only attention sees the padded form, in a kernel that gives a text
the same result to the bit whatever it is padded to. Long texts without padding take a kernel that
holds no scores.

In int8, only the layers' products and the token table are quantised. Normalisation, attention and
heads stay in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from unified_embeddings.export.graph_writer import FLOAT, FUSED, INT32, INT64, GraphWriter
from unified_embeddings.export.layer_writer import LayerWriter
from unified_embeddings.export.quantisation import Rotation, rotate
from unified_embeddings.models.exported import COLBERT_OPTION, INPUTS, OUTPUTS, SHORT_TEXT
from unified_embeddings.models.weights import POSITION_TABLE, TYPE_TABLE, VOCABULARY_TABLE, Backbone
from unified_embeddings.system.progress import progress_bar
from unified_embeddings.types import FloatArray

_ACTIVATION_BLOCK = 32
"""Columns of an activation's result that are rotated together: it has no large columns, and is four
times as wide as the states."""
# Names of the tensors that several parts of the graph share.
_ZERO = "zero"
_ONE = "one"
_FIRST_AXIS = "first axis"
_LAST_AXIS = "last axis"
_FLAT = "flat"
"""[-1], the shape of a tensor with its axes merged into one."""
_ROWS = "rows"
"""(T,): the position of each token among all positions, padding included."""
_SLOTS = "slots"
"""(texts, tokens): the row of the token at each position; for padding, a row of another text."""
_LENGTHS = "lengths"
"""(texts,): the number of tokens of each text."""
_IS_WHOLE = "is_whole"
"""Whether attention runs over whole texts: none is padded, and they are long."""
_PADDED_SHAPE = "padded_shape"
"""[texts, tokens]."""
_WHOLE_STATES = "whole_states"
"""[texts, tokens, d], the shape of the hidden states of whole texts; [1, T, d] for others."""
_PACKED_STATES = "packed_states"
"""[-1, d], the shape of packed hidden states."""

Linear: TypeAlias = tuple[FloatArray, FloatArray]
"""Weight (rows, columns) and bias (rows,)."""


class States(NamedTuple):
    """Hidden states in the graph: what a node computes, plus a shift.

    The shift of a normalisation is the same for all tokens. Left out of the node, and added to the
    biases that follow, it costs nothing, and int8 has smaller numbers to round.

    Attributes:
        name: Name of the node, (T, d).
        shift: What is to be added to each row, (d,).
    """

    name: str
    shift: FloatArray


@dataclass(frozen=True)
class Model:
    """The weights and settings that a graph is written from.

    Attributes:
        backbone: The layers.
        pooling: "cls" or "mean".
        padding: Id of the padding token, after which the backbone's positions start; None if they
            start at 0.
        sparse: The sparse head (1, d), if the model has one.
        colbert: The ColBERT head, if the model has one.
    """

    backbone: Backbone
    pooling: str
    padding: int | None
    sparse: Linear | None
    colbert: Linear | None


def write_graph(model: Model, path: Path, *, quantised: bool, show_progress: bool = False) -> None:
    """Write a model's graph, and its weights into a file of the same name with `.data` appended.

    One tensor at a time is held in memory.

    Args:
        model: What to write.
        path: The graph's file.
        quantised: Whether products and token table are written in int8.
        show_progress: Draw a progress bar on standard error.

    Raises:
        OSError: If a file cannot be written.
    """
    weights_path = path.with_name(f"{path.name}.data")
    with weights_path.open("wb") as weights:
        writer = LayerWriter(weights, weights_path.name, quantised=quantised)
        states = _write_embeddings(writer, model)
        model.backbone.release_pages("embeddings.")
        layers = model.backbone.layers
        with progress_bar("Writing layers", layers, shown=show_progress) as advance:
            for number in range(layers):
                states = _write_layer(writer, model.backbone, number, states)
                model.backbone.release_pages(f"encoder.layer.{number}.")
                advance(1)
        shift = writer.add_constant("states/shift", states.shift)
        _write_outputs(writer, model, writer.add_node("Add", [states.name, shift], "states"))
    writer.save(path, INPUTS)


# --- from the inputs to the first hidden states -------------------------------------------------


def _write_embeddings(writer: LayerWriter, model: Model) -> States:
    """Write packing and embeddings; returns the first hidden states, (T, d)."""
    backbone = model.backbone
    _write_packing(writer, backbone.width)
    token_ids = _pack(writer, INPUTS[0], "ids")
    positions = _pack(writer, _write_positions(writer, model.padding), "positions")
    words = writer.add_token_table(
        token_ids, _read_array(backbone, VOCABULARY_TABLE), "embeddings/words"
    )
    # Every token has type 0, whose row is added to each position's beforehand.
    table = _read_array(backbone, POSITION_TABLE) + _read_array(backbone, TYPE_TABLE)[0]
    table_name = writer.add_constant("embeddings/positions/table", table)
    places = writer.add_node("Gather", [table_name, positions], "embeddings/positions")
    zeros = np.zeros(backbone.width, dtype=np.float32)
    norm, name = "embeddings.LayerNorm", "embeddings/norm"
    return _write_norm(writer, backbone, words, zeros, States(places, zeros), norm, name)


def _write_packing(writer: GraphWriter, width: int) -> None:
    """Write what the other parts need to know of the padding; see the names above."""
    writer.add_constant(_ZERO, np.int64(0))
    writer.add_constant(_ONE, np.int64(1))
    writer.add_constant(_LAST_AXIS, np.int64(-1))
    writer.add_constant(_FLAT, np.array([-1], dtype=np.int64))
    writer.add_constant(_FIRST_AXIS, np.array([0], dtype=np.int64))
    input_ids, attention_mask = INPUTS
    # Packing: the positions of the tokens, and for each position its token.
    mask = writer.add_node("Reshape", [attention_mask, _FLAT], "flat_mask")
    tokens = writer.add_node("NonZero", [mask], "real")
    writer.add_node("Squeeze", [tokens, _FIRST_AXIS], _ROWS)
    # The token at a position is the number of tokens up to it, less one. Padding at the very start
    # would have -1, which is not a row.
    count = writer.add_node("CumSum", [mask, _ZERO], "count")
    row = writer.add_node("Sub", [count, _ONE], "packed")
    slot = writer.add_node("Max", [row, _ZERO], "slot")
    writer.add_node("Shape", [input_ids], _PADDED_SHAPE)
    writer.add_node("Reshape", [slot, _PADDED_SHAPE], _SLOTS)
    # Attention: which kernel to take, and what to mask in the one for padded texts.
    tokens_axis = writer.add_constant("tokens axis", np.array([1]))
    sums = writer.add_node("ReduceSum", [attention_mask, tokens_axis], "sums", keepdims=0)
    writer.add_node("Cast", [sums], _LENGTHS, to=INT32)
    all_positions = writer.add_node("Size", [mask], "places")
    all_tokens = writer.add_node("Size", [_ROWS], "tokens")
    is_unpadded = writer.add_node("Equal", [all_positions, all_tokens], "is_unpadded")
    longest = writer.add_node("Gather", [_PADDED_SHAPE, _ONE], "longest")
    short = writer.add_constant("short", np.int64(SHORT_TEXT))
    is_long = writer.add_node("Greater", [longest, short], "is_long")
    writer.add_node("And", [is_unpadded, is_long], _IS_WHOLE)
    one_text = writer.add_constant("one text", np.array([1, -1], dtype=np.int64))
    shape = writer.add_node("Where", [_IS_WHOLE, _PADDED_SHAPE, one_text], "whole_shape")
    width_shape = writer.add_constant("width", np.array([width], dtype=np.int64))
    writer.add_node("Concat", [shape, width_shape], _WHOLE_STATES, axis=0)
    writer.add_constant(_PACKED_STATES, np.array([-1, width], dtype=np.int64))


def _write_positions(writer: GraphWriter, padding: int | None) -> str:
    """Write each token's position id, (texts, tokens); see `architecture.position_ids`."""
    input_ids, attention_mask = INPUTS
    if padding is None:
        count = writer.add_node("CumSum", [attention_mask, _LAST_AXIS], "numbers")
        return writer.add_node("Sub", [count, _ONE], "positions")
    # A literal padding token in a text is not counted, and gets the padding's position.
    pad_id = writer.add_constant("padding", np.int64(padding))
    is_padding = writer.add_node("Equal", [input_ids, pad_id], "is_pad")
    is_counted = writer.add_node("Not", [is_padding], "is_known")
    is_counted = writer.add_node("Cast", [is_counted], "known", to=INT64)
    count = writer.add_node("CumSum", [is_counted, _LAST_AXIS], "numbers")
    count = writer.add_node("Mul", [count, is_counted], "counted")
    return writer.add_node("Add", [count, pad_id], "positions")


def _pack(writer: GraphWriter, padded: str, stem: str) -> str:
    """Write the packed form, (T,), of a padded tensor (texts, tokens)."""
    flat = writer.add_node("Reshape", [padded, _FLAT], f"flat_{stem}")
    return writer.add_node("Gather", [flat, _ROWS], f"packed_{stem}")


# --- one layer ----------------------------------------------------------------------------------


def _write_layer(writer: LayerWriter, backbone: Backbone, number: int, states: States) -> States:
    """Write a layer; takes and returns hidden states, (T, d)."""
    prefix, name = f"encoder.layer.{number}", f"layer.{number}"
    product, bias = _write_attention(writer, backbone, number, states)
    norm = f"{prefix}.attention.output.LayerNorm"
    states = _write_norm(writer, backbone, product, bias, states, norm, f"{name}/attention/norm")
    weight, bias = _read_linear(backbone, f"{prefix}.intermediate.dense")
    product = writer.add_product(states.name, weight, f"{name}/wide", Rotation.of(backbone.width))
    bias = bias + weight @ states.shift
    activated = _write_activation(writer, product, bias, backbone.activation, f"{name}/wide")
    weight, bias = _read_linear(backbone, f"{prefix}.output.dense")
    rotation = Rotation.of(weight.shape[1], _ACTIVATION_BLOCK)
    product = writer.add_product(activated, weight, f"{name}/narrow", rotation)
    norm = f"{prefix}.output.LayerNorm"
    return _write_norm(writer, backbone, product, bias, states, norm, f"{name}/norm")


def _write_attention(
    writer: LayerWriter, backbone: Backbone, number: int, states: States
) -> tuple[str, FloatArray]:
    """Write attention within each text.

    Returns:
        Name of its output without the bias, (T, d), and the bias, (d,).
    """
    prefix, name = f"encoder.layer.{number}.attention", f"layer.{number}/attention"
    kinds = ("query", "key", "value")
    linears = [_read_linear(backbone, f"{prefix}.self.{kind}") for kind in kinds]
    query, key, value = (weight for weight, _ in linears)
    query_bias, key_bias, value_bias = (bias + weight @ states.shift for weight, bias in linears)
    products = writer.add_products(
        states.name,
        {
            f"{name}/query": query,
            f"{name}/key": key,
            f"{name}/value": _rotate_heads(writer, backbone, value.T).T,
        },
        f"{name}/inputs",
        Rotation.of(backbone.width),
    )
    # Attention weighs whole values, so what is added to each of them is added to the context: it
    # goes into the output's bias, and leaves smaller numbers to be rounded.
    biases = np.concatenate([query_bias, key_bias, np.zeros_like(value_bias)])
    context = _write_context(writer, backbone, products, biases, name)
    weight, bias = _read_linear(backbone, f"{prefix}.output.dense")
    # In int8 the context comes rotated from the values' product.
    rotated = _rotate_heads(writer, backbone, weight)
    product = writer.add_product(context, rotated, f"{name}/output", None)
    return product, bias + weight @ value_bias


def _write_context(
    writer: LayerWriter, backbone: Backbone, parts: list[str], biases: FloatArray, name: str
) -> str:
    """Write what attention makes of queries, keys and values (T, d), without biases: (T, d).

    Tokens are spread over (texts, tokens, d) and the padding is masked, which takes a kernel that
    holds all scores. Long texts without padding take another kernel that holds none, so that a
    text of 8,192 tokens does not need 4 GB.
    """
    bias_name = writer.add_constant(f"{name}/biases", biases)
    heads = backbone.heads
    # Changing a shape costs nothing here. In a branch it would cost a copy.
    texts = [writer.add_node("Reshape", [part, _WHOLE_STATES], f"{part}/texts") for part in parts]
    # An If computes only the branch that is taken.
    with writer.branch() as whole:
        writer.add_node(
            "MultiHeadAttention", [*texts, bias_name], f"{name}/then", FUSED, num_heads=heads
        )
    with writer.branch() as masked:
        spread = [writer.add_node("Gather", [part, _SLOTS], f"{part}/spread") for part in parts]
        inputs = [*spread, bias_name, _LENGTHS]
        context = writer.add_node(
            "MultiHeadAttention", inputs, f"{name}/masked", FUSED, num_heads=heads
        )
        positions = writer.add_node("Reshape", [context, _PACKED_STATES], f"{name}/positions")
        writer.add_node("Gather", [positions, _ROWS], f"{name}/else")
    context = writer.add_condition(_IS_WHOLE, whole, masked, f"{name}/context", stem=name)
    return writer.add_node("Reshape", [context, _PACKED_STATES], f"{name}/rows")


def _rotate_heads(writer: LayerWriter, backbone: Backbone, rows: FloatArray) -> FloatArray:
    """Rotate rows (n, d) within each attention head; in fp32 they stay what they are.

    Attention weighs values whole, so that rotated values give a rotated context. This costs nothing
    when the graph is run.
    """
    if not writer.quantised:
        return rows
    return rotate(rows, Rotation.of(backbone.width // backbone.heads))


def _write_activation(
    writer: GraphWriter, product: str, bias: FloatArray, activation: str, name: str
) -> str:
    """Write the activation of a product plus its bias."""
    bias_name = writer.add_constant(f"{name}/bias", bias)
    if activation == "relu":
        total = writer.add_node("Add", [product, bias_name], f"{name}/sum")
        return writer.add_node("Relu", [total], f"{name}/relu")
    fused_operators = {"gelu": "BiasGelu", "gelu_tanh": "FastGelu"}
    operator = fused_operators[activation]
    return writer.add_node(operator, [product, bias_name], f"{name}/gelu", FUSED)


def _write_norm(
    writer: GraphWriter,
    backbone: Backbone,
    product: str,
    bias: FloatArray,
    residual: States,
    tensor: str,
    name: str,
) -> States:
    """Write the normalisation of a product plus its bias plus a residual, all (T, d).

    Args:
        writer: The graph.
        backbone: The weights.
        product: Name of the product.
        bias: The product's bias, (d,).
        residual: What is added to it.
        tensor: Start of the names of the normalisation's weight and bias.
        name: Name of the result.
    """
    scale = writer.add_constant(f"{name}/weight", _read_array(backbone, f"{tensor}.weight"))
    shift_name = writer.add_constant(f"{name}/before", bias + residual.shift)
    # Not an Add, which ONNX Runtime would join with the normalisation into an operator that takes
    # several times as long as the two.
    total = writer.add_node("Sum", [product, residual.name, shift_name], f"{name}/total")
    writer.add_node("LayerNormalization", [total, scale], name, epsilon=backbone.epsilon)
    return States(name, _read_array(backbone, f"{tensor}.bias"))


# --- from the last hidden states to the outputs -------------------------------------------------


def _write_outputs(writer: LayerWriter, model: Model, hidden: str) -> None:
    """Write what each head makes of the last hidden states (T, d), padded again."""
    if model.pooling == "cls":
        _write_first_states(writer, hidden)
    else:
        _write_mean_states(writer, hidden)
    writer.add_output(OUTPUTS["dense"], ["texts", model.backbone.width])
    if model.sparse is not None:
        weights = writer.add_head(hidden, *model.sparse, "sparse")
        weights = writer.add_node("Relu", [weights], "sparse/relu")
        # (T, 1) to (T,), then spread over (texts, tokens).
        flat = writer.add_node("Reshape", [weights, _FLAT], "sparse/flat")
        writer.add_node("Gather", [flat, _SLOTS], OUTPUTS["sparse"])
        writer.add_output(OUTPUTS["sparse"], ["texts", "tokens"])
    if model.colbert is not None:
        _write_colbert(writer, hidden, model.colbert)


def _write_colbert(writer: LayerWriter, hidden: str, head: Linear) -> None:
    """Write the ColBERT head, which is left out where nobody asks for it.

    ONNX Runtime computes all outputs, also those that are not fetched.
    """
    writer.add_option(COLBERT_OPTION, np.bool_(True))
    with writer.branch() as wanted:
        vectors = writer.add_head(hidden, *head, "colbert")
        # ColBERT's rows leave the leading special token out.
        start = writer.add_constant("colbert/from", np.array([1]))
        end = writer.add_constant("colbert/to", np.array([np.iinfo(np.int64).max]))
        axis = writer.add_constant("colbert/axis", np.array([1]))
        later_slots = writer.add_node("Slice", [_SLOTS, start, end, axis], "colbert/slots")
        writer.add_node("Gather", [vectors, later_slots], "colbert/then")
    with writer.branch() as unwanted:
        nothing = writer.add_constant("colbert/nothing", np.empty((0, 0), dtype=np.int64))
        writer.add_node("Gather", [hidden, nothing], "colbert/else")
    writer.add_condition(COLBERT_OPTION, wanted, unwanted, OUTPUTS["colbert"], "colbert")
    _, bias = head
    writer.add_output(OUTPUTS["colbert"], ["texts", "tokens_but_first", len(bias)])


def _write_first_states(writer: GraphWriter, hidden: str) -> None:
    """Write cls pooling: the hidden state of each text's first token."""
    first_token = writer.add_constant("first token", np.int64(0))
    first_rows = writer.add_node("Gather", [_SLOTS, first_token], "firsts", axis=1)
    writer.add_node("Gather", [hidden, first_rows], OUTPUTS["dense"])


def _write_mean_states(writer: GraphWriter, hidden: str) -> None:
    """Write mean pooling: the mean of each text's hidden states, without those of padding."""
    spread = writer.add_node("Gather", [hidden, _SLOTS], "spread")
    mask = writer.add_node("Cast", [INPUTS[1]], "kept", to=FLOAT)
    states_axis = writer.add_constant("states axis", np.array([2]))
    mask = writer.add_node("Unsqueeze", [mask, states_axis], "kept_states")
    tokens_axis = writer.add_constant("pooled axis", np.array([1]))
    states = writer.add_node("Mul", [spread, mask], "real_states")
    sums = writer.add_node("ReduceSum", [states, tokens_axis], "state_sums", keepdims=0)
    counts = writer.add_node("ReduceSum", [mask, tokens_axis], "counts", keepdims=0)
    writer.add_node("Div", [sums, counts], OUTPUTS["dense"])


# --- reading weights ----------------------------------------------------------------------------


def _read_array(backbone: Backbone, name: str) -> FloatArray:
    return np.asarray(backbone.tensors[name].float().numpy())


def _read_linear(backbone: Backbone, *names: str) -> Linear:
    weight, bias = backbone.linear(*names)
    return weight.float().numpy(), bias.float().numpy()
