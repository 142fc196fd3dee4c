"""An exported model's folder: its notes, and the names of its graph's inputs and outputs.

What lives here: what the exporter and the engine 'onnx' must agree on. What does not: writing the
folder (`export`), running the graph (`engines.onnx`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.models.files import ModelFiles
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.types import HeadName

INPUTS = ("input_ids", "attention_mask")
"""The inputs of an exported graph, both int64 (texts, tokens)."""

OUTPUTS: dict[HeadName, str] = {
    "dense": "pooled",
    "sparse": "token_weights",
    "colbert": "token_vectors",
}
"""Head → the output of the graph that the head's vectors are made from."""

COLBERT_OPTION = "with_colbert"
"""An optional input of an exported graph, a boolean scalar: whether it computes ColBERT's vectors.
They are 1% of its time. Without them, that output is empty. Exports of earlier versions have no
such input."""

EXPORTED_IN = ("fp32", "int8")
"""The precisions that a model can be exported in."""

SHORT_TEXT = 64
"""Tokens up to which texts of several lengths share a pass of a ragged graph. Attention takes
another kernel for them than for longer texts, which differs in the seventh digit, so a text's
length alone decides which one it gets."""

INT8_SCHEME = "rows-feedback"
"""How int8 is made in new exports: scaled by the rows of states and weights, which are rounded with
feedback (`export.quantisation`)."""
ROW_SCHEMES = (INT8_SCHEME, "rows")
"""Ways to make int8 that are fast; see `ExportNotes.scheme`."""

EXPORT = "export.json"
"""Name of the file with an exported model's notes."""

EXPORT_FORMAT = 3
"""Version of the notes and of the graph. Raise it with every change that makes older exports stale:
it is part of the name of the folder in the user's cache."""


@dataclass(frozen=True)
class ExportNotes:
    """What `export.json` says of an exported model.

    Attributes:
        source: Name or folder of the model that was exported.
        precision: One of `EXPORTED_IN`.
        digest: The source's digest. Vectors of the two compare, so they share a fingerprint.
        sampled_digest: The digest that earlier versions gave the source.
        graph_file: Name of the ONNX file.
        content: Digest of the ONNX file and its weights; see `digests.content_digest`.
        ragged: Whether texts of several lengths may share a pass; see `SHORT_TEXT`. Exports of
            earlier versions take texts of one length at a time.
        scheme: How int8 was made: `INT8_SCHEME`. In exports of earlier versions it is "rows", which
            were rounded to the nearest, or "", which is by blocks. In fp32 it is "".
    """

    source: str
    precision: str
    digest: str
    sampled_digest: str
    graph_file: str
    content: str
    ragged: bool
    scheme: str

    @classmethod
    def from_json(cls, notes: Mapping[str, object]) -> ExportNotes | None:
        """Build from the content of `export.json`; None if another version wrote it."""
        required = {"file", "precision", "digest", "sampled_digest", "content"}
        if notes.get("format") != EXPORT_FORMAT or required - notes.keys():
            return None
        if notes["precision"] not in EXPORTED_IN or _read_spec(notes, ".") is None:
            return None
        return cls(
            source=str(notes.get("model")),
            precision=str(notes["precision"]),
            digest=str(notes["digest"]),
            sampled_digest=str(notes["sampled_digest"]),
            graph_file=str(notes["file"]),
            content=str(notes["content"]),
            ragged=notes.get("ragged") is True,
            scheme=str(notes.get("scheme", "")),
        )

    @property
    def weights_file(self) -> str:
        """Return the name of the file with the graph's weights."""
        return f"{self.graph_file}.data"


def read_exported_spec(folder: str) -> ModelSpec | None:
    """Return the spec that an exported model's folder carries; None for any other name or folder.

    A broken export gives None as well: `Checkpoint.export_notes` says what is wrong with it.
    """
    try:
        notes = ModelFiles(folder, Path(folder).expanduser()).read_json(EXPORT)
    except (UnifiedEmbeddingsError, RuntimeError):  # no export, or no such user
        return None
    return _read_spec(notes, folder)


def _read_spec(notes: Mapping[str, object], folder: str) -> ModelSpec | None:
    """Return the spec in the notes, with the folder as its model; None if it is none."""
    fields = notes.get("spec")
    if not isinstance(fields, dict):
        return None
    # Whatever the file says: an exported model is run by this engine, and has no code.
    fixed = {"model_id": folder, "engine": "onnx", "remote_code": False, "sparse_model": None}
    try:
        return ModelSpec.from_dict({**fields, **fixed})
    except InputError:
        return None
