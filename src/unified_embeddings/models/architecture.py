"""Which architectures the packed engine runs, and how they number positions.

What lives here: what the engine 'torch' and the exporter, which compute the same layers, both need
to know. What does not: the layers (`engines.encoder`, `export.graph`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.types import IntArray

PACKED = ("bert", "xlm-roberta", "roberta", "camembert")
"""Architectures that the engine 'torch' runs: one encoder under four names."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Allowed values of `hidden_act` in `config.json` → the activation's name here."""


def packing_problem(checkpoint: Checkpoint) -> str | None:
    """Return what keeps the engine 'torch' from running a model; None if nothing does."""
    if checkpoint.is_exported:
        return "it is an ONNX file, which the engine 'onnx' runs"
    if checkpoint.model_type not in PACKED:
        return f"architecture {checkpoint.model_type!r} is not one it runs ({', '.join(PACKED)})"
    if checkpoint.pooling == "splade":
        return "it computes no SPLADE vectors"
    if checkpoint.spec.adapters or checkpoint.spec.remote_code:
        return "it runs neither adapters nor remote code"
    config = checkpoint.config
    activation = str(config.get("hidden_act", "gelu"))
    if activation not in ACTIVATIONS:
        return f"it has no activation {activation!r}, only {', '.join(ACTIVATIONS)}"
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        return "config.json asks for relative positions or a decoder"
    if checkpoint.further_modules:
        return f"modules.json also asks for {', '.join(checkpoint.further_modules)}"
    return None


def position_ids(token_ids: IntArray, checkpoint: Checkpoint) -> NDArray[np.int64]:
    """Return the position ids of one text, int64 (t,), as its backbone would number them itself.

    RoBERTa counts the tokens that are not padding, and starts after the padding's id. A literal
    `<pad>` in a text therefore takes the padding's position and is not counted.

    Args:
        token_ids: The text's tokens, int32 (t,).
        checkpoint: The model's files.
    """
    if checkpoint.positions_start_at_zero:
        return np.arange(len(token_ids), dtype=np.int64)
    pad_id = checkpoint.pad_id
    is_counted = (token_ids != pad_id).astype(np.int64)
    positions: NDArray[np.int64] = np.cumsum(is_counted) * is_counted + pad_id
    return positions
