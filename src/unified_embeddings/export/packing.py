"""Texts in a graph: padded as they come, packed as layers take them.

What lives here: which rows are tokens, where each of them goes, and the shapes of both forms. What
does not: the layers between (`graph`).
"""

from __future__ import annotations

import numpy as np

from unified_embeddings.export.graph_writer import INT32, INT64, GraphWriter
from unified_embeddings.models.exported import INPUTS, SHORT_TEXT

# Names of the tensors that several parts of the graph share.
ZERO = "zero"
ONE = "one"
FIRST_AXIS = "first axis"
LAST_AXIS = "last axis"
FLAT = "flat"
"""[-1], the shape of a tensor with its axes merged into one."""
ROWS = "rows"
"""(T,): the position of each token among all positions, padding included."""
SLOTS = "slots"
"""(texts, tokens): the row of the token at each position; for padding, a row of another text."""
LENGTHS = "lengths"
"""(texts,): the number of tokens of each text."""
IS_WHOLE = "is_whole"
"""Whether attention runs over whole texts: none is padded, and they are long."""
PADDED_SHAPE = "padded_shape"
"""[texts, tokens]."""
WHOLE_STATES = "whole_states"
"""[texts, tokens, d], the shape of the hidden states of whole texts; [1, T, d] for others."""
PACKED_STATES = "packed_states"
"""[-1, d], the shape of packed hidden states."""


def write_packing(writer: GraphWriter, width: int) -> None:
    """Write what the other parts need to know of the padding; see the names above."""
    writer.add_constant(ZERO, np.int64(0))
    writer.add_constant(ONE, np.int64(1))
    writer.add_constant(LAST_AXIS, np.int64(-1))
    writer.add_constant(FLAT, np.array([-1], dtype=np.int64))
    writer.add_constant(FIRST_AXIS, np.array([0], dtype=np.int64))
    input_ids, attention_mask = INPUTS
    # Packing: the positions of the tokens, and for each position its token.
    mask = writer.add_node("Reshape", [attention_mask, FLAT], "flat_mask")
    tokens = writer.add_node("NonZero", [mask], "real")
    writer.add_node("Squeeze", [tokens, FIRST_AXIS], ROWS)
    # The token at a position is the number of tokens up to it, less one. Padding at the very start
    # would have -1, which is not a row.
    count = writer.add_node("CumSum", [mask, ZERO], "count")
    row = writer.add_node("Sub", [count, ONE], "packed")
    slot = writer.add_node("Max", [row, ZERO], "slot")
    writer.add_node("Shape", [input_ids], PADDED_SHAPE)
    writer.add_node("Reshape", [slot, PADDED_SHAPE], SLOTS)
    # Attention: which kernel to take, and what to mask in the one for padded texts.
    tokens_axis = writer.add_constant("tokens axis", np.array([1]))
    sums = writer.add_node("ReduceSum", [attention_mask, tokens_axis], "sums", keepdims=0)
    writer.add_node("Cast", [sums], LENGTHS, to=INT32)
    all_positions = writer.add_node("Size", [mask], "places")
    all_tokens = writer.add_node("Size", [ROWS], "tokens")
    is_unpadded = writer.add_node("Equal", [all_positions, all_tokens], "is_unpadded")
    longest = writer.add_node("Gather", [PADDED_SHAPE, ONE], "longest")
    short = writer.add_constant("short", np.int64(SHORT_TEXT))
    is_long = writer.add_node("Greater", [longest, short], "is_long")
    writer.add_node("And", [is_unpadded, is_long], IS_WHOLE)
    one_text = writer.add_constant("one text", np.array([1, -1], dtype=np.int64))
    shape = writer.add_node("Where", [IS_WHOLE, PADDED_SHAPE, one_text], "whole_shape")
    width_shape = writer.add_constant("width", np.array([width], dtype=np.int64))
    writer.add_node("Concat", [shape, width_shape], WHOLE_STATES, axis=0)
    writer.add_constant(PACKED_STATES, np.array([-1, width], dtype=np.int64))


def write_positions(writer: GraphWriter, padding: int | None) -> str:
    """Write each token's position id, (texts, tokens); see `architecture.position_ids`."""
    input_ids, attention_mask = INPUTS
    if padding is None:
        count = writer.add_node("CumSum", [attention_mask, LAST_AXIS], "numbers")
        return writer.add_node("Sub", [count, ONE], "positions")
    # A literal padding token in a text is not counted, and gets the padding's position.
    pad_id = writer.add_constant("padding", np.int64(padding))
    is_padding = writer.add_node("Equal", [input_ids, pad_id], "is_pad")
    is_counted = writer.add_node("Not", [is_padding], "is_known")
    is_counted = writer.add_node("Cast", [is_counted], "known", to=INT64)
    count = writer.add_node("CumSum", [is_counted, LAST_AXIS], "numbers")
    count = writer.add_node("Mul", [count, is_counted], "counted")
    return writer.add_node("Add", [count, pad_id], "positions")


def pack(writer: GraphWriter, padded: str, stem: str) -> str:
    """Write the packed form, (T,), of a padded tensor (texts, tokens)."""
    flat = writer.add_node("Reshape", [padded, FLAT], f"flat_{stem}")
    return writer.add_node("Gather", [flat, ROWS], f"packed_{stem}")
