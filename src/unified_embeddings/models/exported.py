"""What an exported model's folder holds, and what its graph's inputs and outputs are called."""

from __future__ import annotations

import json
from pathlib import Path

from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.types import HeadName

INPUTS = ("input_ids", "attention_mask")


OUTPUTS: dict[HeadName, str] = {
    "dense": "pooled",
    "sparse": "token_weights",
    "colbert": "token_vectors",
}
"""An exported graph's inputs, and head → the output that it is made of."""


EXPORTED_IN = ("fp32", "int8")
"""The precisions there are of it."""


EXPORT = "export.json"
"""What an exported model's folder says of itself; see `export`."""


EXPORT_FORMAT = 2
"""Of these notes and of the graph: raised with every change that makes older ones stale."""


def read_exported_spec(folder: str) -> ModelSpec | None:
    """The spec that an exported model's folder carries; None for any other name or folder."""
    try:
        notes = json.loads((Path(folder).expanduser() / EXPORT).read_bytes())
        return ModelSpec.from_dict({**notes["spec"], "model_id": folder})
    except (OSError, ValueError, RuntimeError, KeyError, TypeError):
        return None  # no export, or a broken one, of which `checkpoints` says what is wrong
