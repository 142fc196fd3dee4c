"""From token states to vectors in NumPy, for engines that compute states and know no heads.

What lives here: the tokenizer, batches by length, and BGE-M3's heads over states. What does not:
computing the states (`ct2`, `vino`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from unified_embeddings.heads import normalise, to_sparse
from unified_embeddings.types import FloatArray, SparseVector

if TYPE_CHECKING:
    from unified_embeddings.models.checkpoint import Checkpoint

_HEAD = "sparse_head.npz"
_SETTINGS = "states.json"

States = Callable[[list[list[int]]], FloatArray]
"""Token ids of some texts → their states (texts, longest, d), padded on the right.

The array may be the engine's own memory, which its next call overwrites.
"""


@dataclass(frozen=True)
class Vectors:
    """The vectors of some texts.

    Attributes:
        dense: Unit rows, float32 (n, d).
        sparse: One per text.
    """

    dense: FloatArray
    sparse: list[SparseVector]


def write_heads(checkpoint: Checkpoint, folder: Path) -> None:
    """Write what `HiddenStates` reads beside a model: tokenizer, sparse head and settings."""
    from unified_embeddings.models.files import SPARSE_HEAD
    from unified_embeddings.models.weights import load_head

    head = load_head(checkpoint, SPARSE_HEAD, rows=1)
    np.savez(folder / _HEAD, weight=head.weight.numpy()[0], bias=head.bias.numpy())
    shutil.copyfile(checkpoint.folder / "tokenizer.json", folder / "tokenizer.json")
    settings = {
        "pooling": checkpoint.pooling,
        "length": checkpoint.max_length,
        "pad": checkpoint.pad_id,
    }
    (folder / _SETTINGS).write_text(json.dumps(settings), "utf-8")


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder that `write_heads` wrote into; it cuts, and does not pad."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_read_settings(folder)["length"])
    return tokenizer


class HiddenStates:
    """A model made of an engine that computes token states, and of the heads here.

    Args:
        folder: The folder that `write_heads` wrote into.
        states: The engine.
    """

    def __init__(self, folder: Path, states: States) -> None:
        self._states = states
        settings = _read_settings(folder)
        self._mean = settings["pooling"] == "mean"
        self._tokenizer = read_tokenizer(folder)
        self._special_ids = frozenset(self._tokenizer.encode("").ids) | {settings["pad"]}
        with np.load(folder / _HEAD) as head:
            self._weight = np.asarray(head["weight"], np.float32)
            self._bias = np.float32(head["bias"][0])

    def encode(self, texts: list[str], batch_size: int) -> Vectors:
        """Embed texts in batches of texts that are about equally long."""
        encodings = self._tokenizer.encode_batch_fast(texts)
        ids = [encoding.ids for encoding in encodings]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        dense: dict[int, FloatArray] = {}
        sparse: dict[int, SparseVector] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            states = self._states([ids[row] for row in rows])
            for row, padded in zip(rows, states, strict=True):
                own = padded[: len(ids[row])]
                dense[row] = own.mean(axis=0) if self._mean else own[0].copy()
                weights = np.maximum(own @ self._weight + self._bias, 0)
                sparse[row] = to_sparse(
                    np.asarray(ids[row]), weights, special_ids=self._special_ids
                )
        numbers = range(len(ids))
        return Vectors(
            dense=normalise(np.stack([dense[row] for row in numbers])),
            sparse=[sparse[row] for row in numbers],
        )


def _read_settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / _SETTINGS).read_text("utf-8"))
    return settings
