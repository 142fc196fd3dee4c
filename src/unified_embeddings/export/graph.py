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
from typing import NamedTuple

import numpy as np

from unified_embeddings.export.graph_writer import FLOAT, FUSED, GraphWriter
from unified_embeddings.export.layer_writer import LayerWriter
from unified_embeddings.export.packing import (
    FLAT,
    IS_WHOLE,
    LENGTHS,
    PACKED_STATES,
    ROWS,
    SLOTS,
    WHOLE_STATES,
    pack,
    write_packing,
    write_positions,
)
from unified_embeddings.export.quantisation import Rotation, rotate
from unified_embeddings.export.reading import Linear, read_array, read_linear
from unified_embeddings.export.trial import LayerInputs, Trial
from unified_embeddings.models.exported import COLBERT_OPTION, INPUTS, OUTPUTS
from unified_embeddings.models.weights import POSITION_TABLE, TYPE_TABLE, VOCABULARY_TABLE, Backbone
from unified_embeddings.system.progress import progress_bar
from unified_embeddings.types import FloatArray

_ACTIVATION_BLOCK = 32
"""Columns of an activation's result that are rotated together: it has no large columns, and is four
times as wide as the states."""


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
        trial = _start_trial(model) if quantised else None
        model.backbone.release_pages("embeddings.")
        layers = model.backbone.layers
        with progress_bar("Writing layers", layers, shown=show_progress) as advance:
            for number in range(layers):
                inputs = trial.run_layer(number) if trial is not None else None
                states = _write_layer(writer, model.backbone, number, states, inputs)
                model.backbone.release_pages(f"encoder.layer.{number}.")
                advance(1)
        shift = writer.add_constant("states/shift", states.shift)
        _write_outputs(writer, model, writer.add_node("Add", [states.name, shift], "states"))
    writer.save(path, INPUTS)


def _start_trial(model: Model) -> Trial:
    first_position = 0 if model.padding is None else model.padding + 1
    return Trial(model.backbone, first_position)


# --- from the inputs to the first hidden states -------------------------------------------------


def _write_embeddings(writer: LayerWriter, model: Model) -> States:
    """Write packing and embeddings; returns the first hidden states, (T, d)."""
    backbone = model.backbone
    write_packing(writer, backbone.width)
    token_ids = pack(writer, INPUTS[0], "ids")
    positions = pack(writer, write_positions(writer, model.padding), "positions")
    words = writer.add_token_table(
        token_ids, read_array(backbone, VOCABULARY_TABLE), "embeddings/words"
    )
    # Every token has type 0, whose row is added to each position's beforehand.
    table = read_array(backbone, POSITION_TABLE) + read_array(backbone, TYPE_TABLE)[0]
    table_name = writer.add_constant("embeddings/positions/table", table)
    places = writer.add_node("Gather", [table_name, positions], "embeddings/positions")
    zeros = np.zeros(backbone.width, dtype=np.float32)
    norm, name = "embeddings.LayerNorm", "embeddings/norm"
    return _write_norm(writer, backbone, words, zeros, States(places, zeros), norm, name)


# --- one layer ----------------------------------------------------------------------------------


def _write_layer(
    writer: LayerWriter,
    backbone: Backbone,
    number: int,
    states: States,
    inputs: LayerInputs | None,
) -> States:
    """Write a layer; takes and returns hidden states, (T, d).

    Args:
        writer: The graph.
        backbone: The weights.
        number: The layer.
        states: What it takes.
        inputs: What its products are multiplied with, for example; None in fp32.
    """
    prefix, name = f"encoder.layer.{number}", f"layer.{number}"
    product, bias = _write_attention(writer, backbone, number, states, inputs)
    norm = f"{prefix}.attention.output.LayerNorm"
    states = _write_norm(writer, backbone, product, bias, states, norm, f"{name}/attention/norm")
    weight, bias = read_linear(backbone, f"{prefix}.intermediate.dense")
    example = None if inputs is None else inputs.normalised
    rotation = Rotation.of(backbone.width)
    product = writer.add_product(states.name, weight, f"{name}/wide", rotation, example)
    bias = bias + weight @ states.shift
    activated = _write_activation(writer, product, bias, backbone.activation, f"{name}/wide")
    weight, bias = read_linear(backbone, f"{prefix}.output.dense")
    rotation = Rotation.of(weight.shape[1], _ACTIVATION_BLOCK)
    example = None if inputs is None else inputs.activated
    product = writer.add_product(activated, weight, f"{name}/narrow", rotation, example)
    norm = f"{prefix}.output.LayerNorm"
    return _write_norm(writer, backbone, product, bias, states, norm, f"{name}/norm")


def _write_attention(
    writer: LayerWriter,
    backbone: Backbone,
    number: int,
    states: States,
    inputs: LayerInputs | None,
) -> tuple[str, FloatArray]:
    """Write attention within each text.

    Returns:
        Name of its output without the bias, (T, d), and the bias, (d,).
    """
    prefix, name = f"encoder.layer.{number}.attention", f"layer.{number}/attention"
    kinds = ("query", "key", "value")
    linears = [read_linear(backbone, f"{prefix}.self.{kind}") for kind in kinds]
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
        None if inputs is None else inputs.states,
    )
    # Attention weighs whole values, so what is added to each of them is added to the context: it
    # goes into the output's bias, and leaves smaller numbers to be rounded.
    biases = np.concatenate([query_bias, key_bias, np.zeros_like(value_bias)])
    context = _write_context(writer, backbone, products, biases, name)
    weight, bias = read_linear(backbone, f"{prefix}.output.dense")
    # In int8 the context comes rotated from the values' product.
    rotated = _rotate_heads(writer, backbone, weight)
    example = None if inputs is None else _rotate_heads(writer, backbone, inputs.context)
    product = writer.add_product(context, rotated, f"{name}/output", None, example)
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
    texts = [writer.add_node("Reshape", [part, WHOLE_STATES], f"{part}/texts") for part in parts]
    # An If computes only the branch that is taken.
    with writer.branch() as whole:
        writer.add_node(
            "MultiHeadAttention", [*texts, bias_name], f"{name}/then", FUSED, num_heads=heads
        )
    with writer.branch() as masked:
        spread = [writer.add_node("Gather", [part, SLOTS], f"{part}/spread") for part in parts]
        inputs = [*spread, bias_name, LENGTHS]
        context = writer.add_node(
            "MultiHeadAttention", inputs, f"{name}/masked", FUSED, num_heads=heads
        )
        positions = writer.add_node("Reshape", [context, PACKED_STATES], f"{name}/positions")
        writer.add_node("Gather", [positions, ROWS], f"{name}/else")
    context = writer.add_condition(IS_WHOLE, whole, masked, f"{name}/context", stem=name)
    return writer.add_node("Reshape", [context, PACKED_STATES], f"{name}/rows")


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
    scale = writer.add_constant(f"{name}/weight", read_array(backbone, f"{tensor}.weight"))
    shift_name = writer.add_constant(f"{name}/before", bias + residual.shift)
    # Not an Add, which ONNX Runtime would join with the normalisation into an operator that takes
    # several times as long as the two.
    total = writer.add_node("Sum", [product, residual.name, shift_name], f"{name}/total")
    writer.add_node("LayerNormalization", [total, scale], name, epsilon=backbone.epsilon)
    return States(name, read_array(backbone, f"{tensor}.bias"))


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
        flat = writer.add_node("Reshape", [weights, FLAT], "sparse/flat")
        writer.add_node("Gather", [flat, SLOTS], OUTPUTS["sparse"])
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
        later_slots = writer.add_node("Slice", [SLOTS, start, end, axis], "colbert/slots")
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
    first_rows = writer.add_node("Gather", [SLOTS, first_token], "firsts", axis=1)
    writer.add_node("Gather", [hidden, first_rows], OUTPUTS["dense"])


def _write_mean_states(writer: GraphWriter, hidden: str) -> None:
    """Write mean pooling: the mean of each text's hidden states, without those of padding."""
    spread = writer.add_node("Gather", [hidden, SLOTS], "spread")
    mask = writer.add_node("Cast", [INPUTS[1]], "kept", to=FLOAT)
    states_axis = writer.add_constant("states axis", np.array([2]))
    mask = writer.add_node("Unsqueeze", [mask, states_axis], "kept_states")
    tokens_axis = writer.add_constant("pooled axis", np.array([1]))
    states = writer.add_node("Mul", [spread, mask], "real_states")
    sums = writer.add_node("ReduceSum", [states, tokens_axis], "state_sums", keepdims=0)
    counts = writer.add_node("ReduceSum", [mask, tokens_axis], "counts", keepdims=0)
    writer.add_node("Div", [sums, counts], OUTPUTS["dense"])
