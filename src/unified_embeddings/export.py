"""Writing a model as an ONNX file with all its heads, for the engine 'onnx'.

What lives here: the graph (backbone, pooling, sparse and ColBERT head in one), and the folder it is
written into. What does not: running it (`engines.onnx`).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unified_embeddings import __version__
from unified_embeddings.checkpoints import (
    COLBERT_HEAD,
    SPARSE_HEAD,
    Checkpoint,
    content_digest,
    resolve,
)
from unified_embeddings.engines import unpackable
from unified_embeddings.engines.onnx import INPUTS, OUTPUTS
from unified_embeddings.engines.torch import load_backbone, load_head
from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.models import EXPORT, ModelSpec

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("The package onnx, which writes ONNX files,", extra="onnx") from error

_FILE = "model.onnx"
_OPSET = 17
_COPIED = ("config.json", "tokenizer.json", "1_Pooling/config.json", "sentence_bert_config.json")


class _Graph(torch.nn.Module):
    """What is exported: token ids in, the raw outputs of every head out."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        heads = checkpoint.spec.heads
        self._pooling = checkpoint.pooling
        self.backbone = load_backbone(checkpoint, torch.float32, attention="eager")
        self.sparse = load_head(checkpoint, SPARSE_HEAD, rows=1) if "sparse" in heads else None
        self.colbert = load_head(checkpoint, COLBERT_HEAD) if "colbert" in heads else None

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Pooled states (n, d), token weights (n, t), token vectors (n, t - 1, d): what it has."""
        hidden = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_type_ids=torch.zeros_like(input_ids),
        ).last_hidden_state
        outputs = [self._pooled(hidden, attention_mask)]
        if self.sparse is not None:
            outputs.append(torch.relu(self.sparse(hidden)).squeeze(-1))
        if self.colbert is not None:
            outputs.append(self.colbert(hidden[:, 1:]))
        return tuple(outputs)

    def _pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._pooling == "cls":
            return hidden[:, 0]
        kept = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * kept).sum(1) / kept.sum(1)


def export_onnx(
    model: str | os.PathLike[str] | ModelSpec,
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a model into a folder that the engine 'onnx' runs, whole or not at all.

    The folder is a model of its own (`UnifiedEmbeddingConfig(folder)`) with the source's
    fingerprint: collections made with the one are searched with the other.

    Args:
        model: A model that the engine 'torch' runs.
        folder: Where to; must not exist, or be empty.
        revision: Branch, tag or commit on the hub.
        local_files_only: Never ask the hub.
        on_step: Called with what is being done, as it begins.

    Raises:
        InputError: If the folder is in use.
        ModelLoadError: If the model cannot be loaded, or is of a kind that cannot be exported.
    """
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not an empty folder; name another")
    checkpoint = resolve(model, revision=revision, local_files_only=local_files_only)
    if problem := unpackable(checkpoint):
        raise checkpoint.problem(f"it cannot be exported: {problem}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            made = Path(scratch) / "export"
            made.mkdir()
            on_step("loading")
            graph = _Graph(checkpoint).eval()
            on_step("tracing")
            _trace(graph, checkpoint, made)
            on_step("writing")
            _write_notes(checkpoint, made)
            if target.exists():
                target.rmdir()
            made.replace(target)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: {error}. Make room or name another"
        ) from error
    return target


def _trace(graph: _Graph, checkpoint: Checkpoint, folder: Path) -> None:
    """The graph's file, its weights beside it in one file."""
    names = [OUTPUTS[head] for head in checkpoint.spec.heads]
    axes = {name: {0: "texts", 1: "tokens"} for name in (*INPUTS, *names)}
    axes["pooled"] = {0: "texts"}
    ids = torch.full((2, 6), 5, dtype=torch.long)
    first = 0 if checkpoint.model_type == "bert" else checkpoint.integer("pad_token_id") + 1
    positions = torch.arange(first, first + 6).expand(2, -1)
    weights = f"{_FILE}.data"
    with tempfile.TemporaryDirectory(dir=folder) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        traced = Path(scratch) / "traced.onnx"
        with torch.inference_mode():
            torch.onnx.export(
                graph,
                (ids, torch.ones_like(ids), positions),
                str(traced),
                input_names=list(INPUTS),
                output_names=names,
                dynamic_axes=axes,
                opset_version=_OPSET,
                dynamo=False,  # its graphs are the ones ONNX Runtime's fusions know
            )
        onnx.save_model(
            onnx.load(traced),
            folder / _FILE,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=weights,
        )
    (folder / weights).chmod((folder / _FILE).stat().st_mode)  # written for its owner alone


def _write_notes(checkpoint: Checkpoint, folder: Path) -> None:
    """The small files, and what the engine has to know of where this comes from."""
    for name in _COPIED:
        if (checkpoint.folder / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(checkpoint.folder / name, folder / name)
    spec = checkpoint.spec.to_dict()
    notes: dict[str, Any] = {
        "format": 1,
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "digest": checkpoint.digest,
        "precision": "fp32",
        "file": _FILE,
        "content": content_digest([folder / _FILE, folder / f"{_FILE}.data"]),
        "spec": {**spec, "model_id": ".", "engine": "onnx", "revision": None},
        "made_with": {"unified-embeddings": __version__, "torch": torch.__version__},
    }
    (folder / EXPORT).write_text(json.dumps(notes, indent=1), "utf-8")
