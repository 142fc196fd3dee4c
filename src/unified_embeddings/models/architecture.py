"""Which architectures the packed engine runs, and how they number positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.types import IntArray

PACKED = {"bert": True, "xlm-roberta": False, "roberta": False, "camembert": False}
"""Architectures the torch engine runs → whether positions start at 0 (else at padding_idx + 1)."""


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""What `hidden_act` may be in `config.json` → the activation's name here."""


def unpackable(checkpoint: Checkpoint) -> str | None:
    """What keeps the torch engine from running a model; None if nothing does."""
    if checkpoint.is_exported:
        return "it is an ONNX file, which the engine 'onnx' runs"
    if checkpoint.model_type not in PACKED:
        return f"architecture {checkpoint.model_type!r} is not one it runs ({', '.join(PACKED)})"
    if checkpoint.pooling == "splade":
        return "it computes no SPLADE vectors"
    if checkpoint.spec.adapters or checkpoint.spec.remote_code:
        return "it runs neither adapters nor remote code"
    config = checkpoint.config
    if str(config.get("hidden_act", "gelu")) not in ACTIVATIONS:
        return f"it knows no activation {config['hidden_act']!r}, only {', '.join(ACTIVATIONS)}"
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        return "config.json asks for relative positions or a decoder"
    more = set(checkpoint.modules or ()) - {"Transformer", "Pooling", "Normalize"}
    return f"modules.json asks for {', '.join(sorted(more))} besides" if more else None


def position_ids(ids: IntArray, checkpoint: Checkpoint) -> NDArray[np.int64]:
    """Position ids of one text, int64 (t,), as its backbone would number them itself.

    RoBERTa's numbering counts tokens that are not padding, so a literal `<pad>` in a text takes the
    padding position and is not counted.
    """
    if PACKED[checkpoint.model_type]:
        return np.arange(len(ids), dtype=np.int64)
    pad_id = int(checkpoint.config.get("pad_token_id") or 0)
    real = (ids != pad_id).astype(np.int64)
    positions: NDArray[np.int64] = np.cumsum(real) * real + pad_id
    return positions
